"""Markov decision processes: finite MDPs, LQR, Gymnasium and MuJoCo environments; exact values for the first two."""
