"""What a GFlowNet is compared with, one method a file, each behind the same interface (`gflownet.problem.Method`).

metropolis.py  Metropolis-Hastings by single-site moves: samples R/Z in the long run, without a policy
ppo.py         proximal policy optimisation: maximises E[R(x)] with an entropy bonus at every step
soft_pg.py     entropy-regularised policy gradient: its optimum is the GFlowNet policy
uniform.py     uniform valid moves
learner.py     parameters and optimiser, for those that have a net
"""
