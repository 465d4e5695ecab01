"""Policy-gradient algorithms, one in each file."""
