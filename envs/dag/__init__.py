"""DAG environments for GFlowNets, and their exact solutions."""
