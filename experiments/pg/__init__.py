"""Training, evaluating and checking policy-gradient agents: settings, the loop, the commands."""
