"""Other libraries' GFlowNets on the hypergrid, timed by scripts that their own Python runs; nothing of ours is imported."""
