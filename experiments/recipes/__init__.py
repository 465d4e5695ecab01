"""Tuned settings by environment: `pg` and `gfn`, one file a family of environments."""
