"""Baselines, one in each file, with the interface `gflownet.problem.Method`.

metropolis.py  Metropolis-Hastings with single-site proposals: converges to R/Z, without a policy
ppo.py         proximal policy optimisation: maximises E[R(x)] with an entropy bonus at every step
soft_pg.py     entropy-regularised policy gradient: its optimum is the GFlowNet policy
uniform.py     uniform valid actions
learner.py     parameters and optimiser of baselines with a network
"""
