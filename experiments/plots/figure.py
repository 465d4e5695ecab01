"""How the sample-complexity figure looks. matplotlib is imported when it is drawn."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.plots.statistics import bootstrap_interval, iqm, loglog_slope

Array = NDArray[np.float64]

X_LABELS = {
    "env_steps": "environment steps per seed",
    "states": "objects visited per seed",
    "oracle/calls": "reward calls per seed",
    "iteration": "iterations",
    "wall": "training time [s]",
}
Y_LABELS = {
    "eval/l1": "L1 distance  Σ|p^ − p|  of the last objects visited",
    "eval/l1_mean": "mean L1 distance of the last objects visited",
    "eval/exact_l1": "L1 distance  Σ|p_θ − p|  of the policy",
    "eval/modes": "modes found",
    "eval/correlation": "correlation of log p_θ(x) and log R(x)",
    "rollout/log_reward": "mean log-reward",
    "eval/gap": "optimality gap  J* − J(θ)  [return]",
    "eval/return": "evaluation return per episode",
    "eval/return_mean_action": "evaluation return of the mean action",
    "rollout/return": "training return per episode",
}
BASE: dict[Any, Any] = {
    "svg.hashsalt": "pgrl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a $ in a name is a $
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less its yellow
MARKERS = "osD^vPX"
LEGEND = 95  # characters across the figure, a line's sample counts as 7
FLOOR = "as many exact samples (noise floor)"


@dataclass(frozen=True)
class Curve:
    """One line on the common grid: x [K], y [S, K] finite; `mixed` names the settings that differ among its pooled runs.

    floor     [K] the least that sampling allows, where it was logged
    repeated  seeds left out because two runs have them
    """

    algo: str
    x: Array
    y: Array
    theory: float | None
    mixed: tuple[str, ...]
    floor: Array | None = None
    repeated: int = 0

    def interval(self) -> tuple[Array, Array, Array]:
        """(iqm, low, high), each [K]."""
        low, high = bootstrap_interval(self.y)
        return iqm(self.y), low, high

    def exponent(self) -> tuple[float, float, float] | None:
        """(p, low, high) of y ∝ x^p over the last decade of x, resampled over seeds; None when there is too little to fit."""
        last = (self.x >= self.x[-1] / 10) & (self.x > 0)
        if last.sum() < 3:
            return None
        x = self.x[last]

        def fit(y: Array, axis: int = 0) -> Array:
            means = iqm(y, axis).reshape(-1, len(x))
            return np.array([loglog_slope(x, m)[0] if np.all(m > 0) else np.nan for m in means]).reshape(-1)

        slope = float(fit(self.y[:, last])[0])
        if not np.isfinite(slope):
            return None
        low, high = bootstrap_interval(self.y[:, last], fit, resamples=400) if len(self.y) > 1 else (slope, slope)
        return slope, float(low), float(high)


def draw(found: list[Curve], out: Path, metric: str, x: str, env: str, log: bool) -> None:
    """One line and one shaded interval per curve, written to `out`; the legend stands below the axes and hides nothing."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with matplotlib.rc_context({**BASE, "font.size": 11}):
        figure = Figure(figsize=(8, 5.2 + 0.14 * len(found)), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # matplotlib's own labels of decades are formulas, see BASE
            axes.xaxis.set_minor_formatter(lambda value, _: _between_decades(value, *axes.get_xlim()))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: _between_decades(value, *axes.get_ylim()))
        else:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        counts = sorted({len(c.y) for c in found})
        for k, curve in enumerate(found):
            colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
            dashes = "-" if k < len(COLOURS) else "--"
            mean, low, high = curve.interval()
            shown = (curve.x > 0) & (mean > 0) & (low > 0) if log else np.isfinite(mean)
            at, label = curve.x[shown], curve.algo + (f"  ({_seeds(len(curve.y))})" if len(counts) > 1 else "")
            if metric == "eval/gap":
                label += _exponents(curve)
            if log:
                _guide(axes, curve, at, mean[shown], colour)
            if curve.mixed:
                label += f"  (pooled over {', '.join(curve.mixed[:3])}{' ...' if len(curve.mixed) > 3 else ''})"
            label = textwrap.fill(label, LEGEND - 7, break_on_hyphens=False)
            axes.fill_between(at, low[shown], high[shown], color=colour, alpha=0.18, linewidth=0)
            spots = _spread(at, log, 9, k / len(found))
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
            axes.plot(at, mean[shown], dashes, linewidth=2, label=label, zorder=4 + k, markevery=spots, **look)
        longest = max(found, key=lambda curve: curve.x[-1])
        if longest.floor is not None:
            seen = (longest.x > 0) | (not log)
            axes.plot(longest.x[seen], longest.floor[seen], ":", color="#555555", linewidth=1.6, label=FLOOR, zorder=3)
        axes.grid(True, which="major", color="#d9d9d9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel(Y_LABELS.get(metric, metric))
        title = f"{env}, {counts[0]}–{_seeds(counts[-1])}" if len(counts) > 1 else f"{env}, {_seeds(counts[0])}"
        axes.set_title(title, loc="left", fontweight="bold", pad=24)
        note = "interquartile mean over seeds, shaded: 95 % bootstrap interval"
        note += "; dashed: the theory's slope" if log and any(c.theory is not None for c in found) else ""
        axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color="#555555")
        labels = [str(line.get_label()) for line in axes.get_lines()]
        widest = max(len(label) for label in labels if not label.startswith("_"))
        columns = 1 if log else max(1, min(len(found), 4, LEGEND // (widest + 7)))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _exponents(curve: Curve) -> str:
    theory = f",  theory {curve.theory:.2f}" if curve.theory is not None else ""
    if (fit := curve.exponent()) is None:
        return theory
    return f":  fitted exponent {fit[0]:.2f} [{fit[1]:.2f}, {fit[2]:.2f}]{theory}".replace("-", "−")


def _guide(axes: Any, curve: Curve, at: Array, mean: Array, colour: str) -> None:
    """The theory's slope along the last decade, a fifth below the curve so that both are seen."""
    last = at >= at[-1] / 10 if len(at) else np.zeros(0, dtype=bool)
    if curve.theory is None or last.sum() < 2:
        return
    u, v = np.log(at[last]), np.log(0.8 * mean[last])
    ends = np.array([u[0], u[-1]])
    axes.plot(np.exp(ends), np.exp(v.mean() + curve.theory * (ends - u.mean())), "--", color=colour, linewidth=1.2, zorder=3)


def label_decades(axis: Any) -> None:
    """Label the decades of a logarithmic axis with numbers; matplotlib's own labels are formulas, which BASE shows as text."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _between_decades(value: float, low: float, high: float) -> str:
    """Labels at 2 and 5 where the axis shows less than two decades, none otherwise."""
    return f"{value:g}" if high < 100 * low and f"{value:e}"[0] in "25" else ""


def _spread(at: Array, log: bool, count: int, shift: float) -> list[int]:
    """Indices of about `count` points evenly apart on the axis, `shift` (0..1) of a gap further on."""
    if len(at) < 2:
        return list(range(len(at)))
    u = np.log(at) if log else at
    wanted = u[0] + (u[-1] - u[0]) * (np.arange(count) + shift) / count
    return sorted({int(np.argmin(np.abs(u - w))) for w in wanted})
