"""DAG environments, which GFlowNets sample from, and their exact solutions."""
