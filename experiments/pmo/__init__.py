"""PMO (Gao et al., NeurIPS 2022): methods that optimise a molecule with 10,000 calls of a score, side by side."""
