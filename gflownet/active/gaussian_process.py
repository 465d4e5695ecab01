"""`GaussianProcess`: a proxy of the reward, a Gaussian process of scikit-learn with an exponential kernel.

    k(x, x') = c exp(-|x - x'| / l),   the Matérn kernel of ν = 1/2
    c and l maximise the marginal likelihood of y, standardised to mean 0 and variance 1

Differs from the paper: no Gamma(0.5, 2.5) prior on l, and rewards are exact (with a jitter in place of the noise).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS = 4096  # objects in a chunk


@dataclass(frozen=True)
class GaussianProcess:
    """A `gflownet.active.rounds.Proxy`. Its methods raise ImportError if scikit-learn is not installed."""

    jitter: float = 1e-6
    """added to the variance of every observation, in units of the variance of y"""

    def fit(self, x: Tensor, y: Tensor) -> Any:
        """Fit scikit-learn's regressor to features x [m, d] and rewards y [m]."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern

        kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(0.5, (1e-2, 1e3), nu=0.5)
        regressor = GaussianProcessRegressor(kernel, alpha=self.jitter, normalize_y=True)
        with warnings.catch_warnings():  # l or c at a bound of its interval: rewards that are all equal or uncorrelated
            warnings.simplefilter("ignore", ConvergenceWarning)
            return regressor.fit(x.double().numpy(), y.double().numpy())

    def posterior(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the posterior of the reward.

        Args:
            x: [m, d], features of the data.
            y: [m], their rewards.
            at: [K, d], features of the queries.

        Returns:
            Mean and standard deviation, [K] float64 each.
        """
        regressor, cells = self.fit(x, y), at.double().numpy()
        found = [regressor.predict(cells[lo : lo + ROWS], return_std=True) for lo in range(0, len(cells), ROWS)]
        mean, std = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
        return mean, std
