"""Policy-gradient agents as pure functions: policies, estimators, schedules, agents."""
