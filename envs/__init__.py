"""Worlds and the journeys through them: environments, their exact solutions, `rollout`."""
