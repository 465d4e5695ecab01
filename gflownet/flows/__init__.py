"""From trajectories to the flows that objectives are functions of."""
