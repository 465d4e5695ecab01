"""The ten MuJoCo v5 tasks: observation, reward and termination, as functions of a batch of rows.

    task                      reward of a step                                                        ends when
    HalfCheetah, Swimmer      speed − w |a|²                                                          never
    Hopper, Walker2d          speed + 1[healthy] − 0.001 |a|²                                         not healthy
    Ant                       speed + 1[healthy] − 0.5 |a|² − 0.0005 |clip(contact forces)|²          not healthy
    Humanoid                  1.25 speed + 5·1[healthy] − 0.1 |u|² − min(5e-7 |contact forces|², 10)  not healthy
    HumanoidStandup           height / time step − 0.1 |u|² − min(5e-7 |contact forces|², 10) + 1     never
    Reacher                   −|fingertip − target| − |a|²                                            never
    InvertedPendulum          1[upright]                                                              not upright
    InvertedDoublePendulum    10·1[upright] − distance penalty − velocity penalty                     not upright

a is the action as given (MuJoCo clamps it to the control range internally), u is a in float64.

Source: the task definitions of the Gymnasium documentation, version v5 (Towers et al., arXiv 2407.17032), default arguments.
Sums are taken in Gymnasium's order and precision (|a|² in the precision of the action), so that results are equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from envs.core import Array


class Step(NamedTuple):
    """One step of B rows. `before` and `now` are what the task reads, [B, W] float64, in the order of `Task.reads`."""

    before: Array
    now: Array
    action: Array  # [B, A] as given
    healthy: Array  # [B] bool; of a task that never ends all are True
    dt: float  # seconds between two actions
    time_step: float  # seconds between two states of the physics
    mass: Array  # [bodies] kilogrammes


@dataclass(frozen=True)
class Task:
    """A task on a MuJoCo model: observation, reward, termination and initial state.

    xml             model file among Gymnasium's assets
    frame_skip      physics steps for each action
    reads           MjData -> arrays of one row (contiguous float64), which are concatenated to W columns
    observe         now [B, W] and a dtype -> obs [B, O]
    reward          Step -> [B]
    healthy         now [B, W] -> [B, K] bool: the episode ends where one is False; None = it never does
    qpos_noise      half width of the uniform noise on the initial position
    qvel_noise      scale of the noise on the initial velocity
    normal_qvel     that noise is normal (standard deviation qvel_noise) instead of uniform (half width qvel_noise)
    goal            radius in metres of the disc in which the last two positions are drawn, or None
    horizon         Gymnasium's time limit, steps
    contact_forces  the task reads cfrc_ext, which MuJoCo computes only on request (mj_rnePostConstraint)
    """

    xml: str
    frame_skip: int
    reads: Callable[[Any], tuple[Array, ...]]
    observe: Callable[[Array, Any], Array]
    reward: Callable[[Step], Array]
    healthy: Callable[[Array], Array] | None
    qpos_noise: float
    qvel_noise: float
    normal_qvel: bool = False
    goal: float | None = None
    horizon: int = 1000
    contact_forces: bool = False


def squares(x: Array) -> Array:
    """|x|² of each row, [B], in the precision of x."""
    return np.add.reduce(x * x, 1)


def within(x: Array, bound: float) -> Array:
    """x clipped to ±bound."""
    return np.minimum(np.maximum(x, -bound), bound)


def speed(s: Step) -> Array:
    """Metres per second made by the first column, [B]."""
    return (s.now[:, 0] - s.before[:, 0]) / s.dt


def motion(d: Any) -> tuple[Array, ...]:
    return d.qpos, d.qvel


def runner(weight: float) -> Callable[[Step], Array]:
    return lambda s: speed(s) - weight * squares(s.action)


def hop(s: Step) -> Array:
    return speed(s) + s.healthy - 1e-3 * squares(s.action)


def all_from(column: int) -> Callable[[Array, Any], Array]:
    """Make an observation: all columns from this one on."""
    return lambda now, dtype: now[:, column:].astype(dtype)


def positions_and_bounded_velocities(count: int) -> Callable[[Array, Any], Array]:
    """Make an observation: all `count` positions but x, and velocities clipped to ±10."""

    def observe(now: Array, dtype: Any) -> Array:
        obs = now[:, 1:].astype(dtype)
        velocity = obs[:, count - 1 :]
        np.minimum(np.maximum(velocity, -10.0, out=velocity), 10.0, out=velocity)
        return obs

    return observe


def between(first: int, *bounds: tuple[float, float]) -> Callable[[Array], Array]:
    """Make a test of the columns from `first` on: each is strictly between its bounds, so that NaN fails."""
    columns = slice(first, first + len(bounds))
    low, high = np.array(bounds).T

    def healthy(now: Array) -> Array:
        x = now[:, columns]
        good: Array = x > low
        good &= x < high
        return good

    return healthy


def at_least(bound: float) -> float:
    """The greatest number below `bound`: x ≥ bound is x > at_least(bound)."""
    return math.nextafter(bound, -math.inf)


def at_most(bound: float) -> float:
    return math.nextafter(bound, math.inf)


FINITE = (-math.inf, math.inf)


# Ant: x of the torso's frame | qpos 15 | qvel 14 | cfrc_ext 14 · 6 (the first 6 belong to the world body and are not observed)


def ant_reads(d: Any) -> tuple[Array, ...]:
    # xpos is older than qpos by one physics step; the task computes the speed from it
    return d.xpos[1, :1], d.qpos, d.qvel, d.cfrc_ext[1:], d.cfrc_ext


def ant_observe(now: Array, dtype: Any) -> Array:
    obs = now[:, 3:108].astype(dtype)
    obs[:, 27:] = within(obs[:, 27:], 1.0)
    return obs


def ant_reward(s: Step) -> Array:
    return speed(s) + s.healthy - (0.5 * squares(s.action) + 5e-4 * squares(within(s.now[:, 108:], 1.0)))


# Humanoids: qpos 24 | qvel 23 | cinert, cvel, actuator forces, cfrc_ext without the world body | cfrc_ext 14 · 6 | xipos 14 · 3

HUMANOID_SEEN = slice(2, 350)
HUMANOID_FORCES = slice(350, 434)
HUMANOID_X = slice(434, 476, 3)


def humanoid_reads(d: Any) -> tuple[Array, ...]:
    seen = d.qpos, d.qvel, d.cinert[1:], d.cvel[1:], d.qfrc_actuator[6:], d.cfrc_ext[1:]
    return *seen, d.cfrc_ext, d.xipos


def humanoid_observe(now: Array, dtype: Any) -> Array:
    return now[:, HUMANOID_SEEN].astype(dtype)


def humanoid_costs(s: Step) -> tuple[Array, Array]:
    control = 0.1 * squares(s.action.astype(np.float64))
    return control, np.minimum(5e-7 * squares(s.now[:, HUMANOID_FORCES]), 10.0)


def humanoid_reward(s: Step) -> Array:
    # cumsum adds body after body, as Gymnasium does; other sums use another order
    now, before = (np.cumsum(s.mass * x[:, HUMANOID_X], 1)[:, -1] / s.mass.sum() for x in (s.now, s.before))
    control, contact = humanoid_costs(s)
    return 1.25 * ((now - before) / s.dt) + 5.0 * s.healthy - (control + contact)


def standup_reward(s: Step) -> Array:
    control, contact = humanoid_costs(s)
    return s.now[:, 2] / s.time_step - control - contact + 1.0


# Reacher: qpos 4 (two joints, target x and y) | qvel 4 | fingertip − target


def reacher_reads(d: Any) -> tuple[Array, ...]:
    return d.qpos, d.qvel, d.body("fingertip").xpos, d.body("target").xpos


def reacher_observe(now: Array, dtype: Any) -> Array:
    joints, gap = now[:, :2], now[:, 8:10] - now[:, 11:13]
    return np.concatenate([np.cos(joints), np.sin(joints), now[:, 2:4], now[:, 4:6], gap], 1).astype(dtype)


def reacher_reward(s: Step) -> Array:
    gap = s.now[:, 8:11] - s.now[:, 11:14]
    distance = np.sqrt(gap[:, None, :] @ gap[:, :, None])[:, 0, 0]  # the rounding of np.linalg.norm, which takes a dot product
    return -distance - squares(s.action)


# InvertedDoublePendulum: qpos 3 | qvel 3 | constraint force on the cart | x, y, z of the tip


def double_pendulum_reads(d: Any) -> tuple[Array, ...]:
    return d.qpos, d.qvel, d.qfrc_constraint[:1], d.site_xpos[0]


def double_pendulum_observe(now: Array, dtype: Any) -> Array:
    angles = now[:, 1:3]
    return np.concatenate([now[:, :1], np.sin(angles), np.cos(angles), within(now[:, 3:7], 10.0)], 1).astype(dtype)


def double_pendulum_healthy(now: Array) -> Array:
    good: Array = now[:, 9:10] <= 1.0
    return ~good  # unlike the other tasks: NaN is healthy, as in Gymnasium


def double_pendulum_reward(s: Step) -> Array:
    # float_power: Gymnasium squares numpy scalars with **, whose last bit is libm's and in 1 of 1,000 cases not that of x · x
    v1, v2, x, z = np.float_power(np.stack([s.now[:, 4], s.now[:, 5], s.now[:, 7], s.now[:, 9] - 2.0]), 2.0)
    return 10.0 * s.healthy - (0.01 * x + z) - (1e-3 * v1 + 5e-3 * v2)


TASKS: dict[str, Task] = {
    "HalfCheetah": Task(
        "half_cheetah.xml", 5, motion, all_from(1), runner(0.1), None, qpos_noise=0.1, qvel_noise=0.1, normal_qvel=True
    ),
    "Swimmer": Task("swimmer.xml", 4, motion, all_from(2), runner(1e-4), None, qpos_noise=0.1, qvel_noise=0.1),
    "Hopper": Task(
        "hopper.xml", 4, motion, positions_and_bounded_velocities(6), hop,
        between(1, (0.7, math.inf), (-0.2, 0.2), *[(-100.0, 100.0)] * 9), qpos_noise=5e-3, qvel_noise=5e-3,
    ),
    "Walker2d": Task(
        "walker2d_v5.xml", 4, motion, positions_and_bounded_velocities(9), hop, between(1, (0.8, 2.0), (-1.0, 1.0)),
        qpos_noise=5e-3, qvel_noise=5e-3,
    ),
    "Ant": Task(
        "ant.xml", 5, ant_reads, ant_observe, ant_reward,
        between(1, FINITE, FINITE, (at_least(0.2), at_most(1.0)), *[FINITE] * 26),
        qpos_noise=0.1, qvel_noise=0.1, normal_qvel=True, contact_forces=True,
    ),
    "Humanoid": Task(
        "humanoid.xml", 5, humanoid_reads, humanoid_observe, humanoid_reward, between(2, (1.0, 2.0)),
        qpos_noise=0.01, qvel_noise=0.01, contact_forces=True,
    ),
    "HumanoidStandup": Task(
        "humanoidstandup.xml", 5, humanoid_reads, humanoid_observe, standup_reward, None,
        qpos_noise=0.01, qvel_noise=0.01, contact_forces=True,
    ),
    "Reacher": Task(
        "reacher.xml", 2, reacher_reads, reacher_observe, reacher_reward, None,
        qpos_noise=0.1, qvel_noise=0.005, goal=0.2, horizon=50,
    ),
    "InvertedPendulum": Task(
        "inverted_pendulum.xml", 2, motion, all_from(0), lambda s: 1.0 * s.healthy,
        between(0, FINITE, (at_least(-0.2), at_most(0.2)), FINITE, FINITE), qpos_noise=0.01, qvel_noise=0.01,
    ),
    "InvertedDoublePendulum": Task(
        "inverted_double_pendulum.xml", 5, double_pendulum_reads, double_pendulum_observe, double_pendulum_reward,
        double_pendulum_healthy, qpos_noise=0.1, qvel_noise=0.1, normal_qvel=True,
    ),
}  # fmt: skip
