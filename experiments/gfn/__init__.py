"""Training and evaluating GFlowNets: settings, the loop, the commands."""
