"""Policy-gradient algorithms, one a file."""
