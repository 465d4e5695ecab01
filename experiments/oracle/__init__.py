"""A user's reward in processes of its own: `make_oracle` gives a `gflownet.rewards.oracle.Oracle`."""
