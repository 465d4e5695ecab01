"""Where trajectories come from: the policy, replay, local search."""
