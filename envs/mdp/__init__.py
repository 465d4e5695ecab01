"""MDPs: tables, LQR, Gymnasium, MuJoCo, and the exact solutions of the small ones."""
