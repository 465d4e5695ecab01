"""Active learning: rounds of proxy, sampler and oracle."""
