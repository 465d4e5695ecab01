"""Generative flow networks: samplers that draw finished objects x with probability R(x)/Z, by building them step by step.

networks.py    nets over stacked parameters theta [S, P], S seeds side by side
model.py       what the outputs of a net mean: policy or edge flows, state flow, backward policy, log Z
flows.py       from trajectories to what an objective asks for
objectives/    one objective a file; each reads as its formula
sampler.py replay.py local_search.py      where trajectories come from
method.py      what is trained; `register` lists all by name, baselines included
metrics.py     how far a law is from the exact one

from envs.dag.hypergrid import HyperGrid
from gflownet.registry import register
"""
