"""`check_dag`: tests whether a DAG environment satisfies the contract of `envs.core.DagEnv`, on top of `check_env`.

    run        n episodes with random valid actions: one source, no rewards of steps, every episode ends by itself
    state_at   must give the same state as stepping, at every state visited
    enumerate  all states and edges by stepping, if there are few; otherwise the visited states only
    compare    outgoing with incoming edges, one by one, and the optional members with what was counted

With too many states to enumerate, an edge missing from `parents` is found only among the visited states. A wrong edge is
always found.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from envs.check import Checks, ContractError, RandomAct, check_briefly, check_env
from envs.core import DagEnv, Parents
from envs.dag.enumeration import Enumeration, enumeration_of
from envs.dag.protocols import CountsEdges, CountsPaths, Indexed, PartialReward, WithModes, offers
from envs.dag.search import NotADag, TooManyStates, differ, hash_key, mask_of, search, states_at, step_from
from envs.dag.segments import distinct_keys
from envs.raised import raised
from envs.random import Rng
from envs.rollout import rollout

DAG_CONTRACT = {  # name: (the requirement, what to do when it is violated)
    "dag members": ("the members of envs.core.DagEnv exist", "Add it to the class"),
    "discrete": (
        "actions are Discrete and states carry an action mask",
        "Number the actions, and return a mask",
    ),
    "ends": (
        "every episode ends by itself within the horizon",
        "Let every action lead closer to an end, or raise `horizon`",
    ),
    "one source": ("all episodes start at the same unfinished state", "Encode differences in the first action"),
    "step reward": ("steps have reward 0", "Define rewards in `log_reward` only"),
    "state_at": (
        "state_at gives the state that stepping reaches",
        "Compute flags and masks from obs and terminated",
    ),
    "distinct": ("no two states have the same index", "Let `index` depend on every coordinate of the observation"),
    "numbers": ("index is int64, from 0 to n_states - 1", "Number observations from 0, and set n_states"),
    "edge list": ("parents returns rows child, obs, action of one length", "Return envs.core.Parents of torch tensors"),
    "no parents": ("the source has no parents", "Remove the source from the edge list"),
    "parents unfinished": ("no parent has ended", "List only unfinished states as parents"),
    "valid edges": ("an edge's action is valid at its parent", "Remove edges whose action is masked"),
    "leads here": ("an edge's action leads from its parent to its child", "Invert exactly what `step` does"),
    "once": ("each edge is listed once", "List each (parent, action) pair once"),
    "all edges": ("every valid step is listed as an edge into the state it leads to", "List the parents for every action"),
    "reachable": ("parents can be reached from the source", "Remove states that no episode visits"),
    "edges_in": ("edges_in counts the edges by action", "Count the edges that `parents` lists"),
    "log_paths": ("log_paths is the log of the number of paths", "Count the paths from the source, parallel edges included"),
    "log_reward": ("log_reward is finite float64, one number for each object", "Take the log of positive numbers, in float64"),
    "partial": ("log_reward_partial is log_reward where an object is finished", "Return log_reward for finished objects"),
    "modes": ("modes are int64, from -1 to n_modes - 1", "Number the modes from 0, and return -1 for none"),
    "describe": ("describe gives each object a distinct text", "Include everything that distinguishes objects"),
}


def check_dag(
    env: DagEnv, states: int = 20_000, episodes: int = 32, seed: int = 0, *, device: torch.device | str = "cpu"
) -> list[str]:
    """Test whether an environment satisfies the contract of `envs.core.DagEnv`, including that of `check_env`.

    Args:
        env: the environment.
        states: a DAG of at most this many states is checked edge by edge; of a larger one, the visited states are checked.
        episodes: random episodes to run.
        seed: of the episodes' keys.
        device: of the random keys, for torch environments that are not on the CPU.

    Returns:
        The checks that passed, one sentence each.

    Raises:
        ContractError: at the first check that fails.
    """
    passed = check_env(env, seed=seed, device=device)
    checks = Checks(DAG_CONTRACT)
    for name in ("state_at", "parents", "log_reward", "describe"):
        checks.require("dag members", hasattr(env, name), "no", name)
    obs, terminated = _play(env, Rng.of_seeds([seed]).spawn(episodes), checks, device)
    full = _enumerate(env, states)
    if full is not None:
        obs, terminated = full.obs, full.terminated
        _compare_state_at(env, full, checks)
    out = _edges_out(env, obs, terminated) if full is None else (full.parent, full.action, full.child)
    _compare(env, obs, terminated, out, full is not None, checks)
    if full is not None and offers(env, CountsPaths):
        given, truth = env.log_paths(obs, terminated), full.log_paths()
        wrong = ~torch.isclose(given.double(), truth, rtol=1e-6, atol=1e-6)
        checks.require("log_paths", not wrong.any(), *_first(wrong, given, "and not", truth, "at", obs))
    _numbers(env, obs, checks)
    _objects(env, obs, terminated, checks)
    return passed + [DAG_CONTRACT[name][0] for name in checks.passed]


def check_dag_briefly(env: DagEnv, seconds: float = 0.5, *, device: torch.device | str = "cpu") -> None:
    """`check_dag` of two episodes, or less where a step is slow. No reward is called: each call is counted, and may be slow.

    Args:
        env: the environment.
        seconds: about how long the check may take; one reset and one step are always made.
        device: of the random keys.

    Raises:
        ContractError: at the first check that fails.
    """
    checks = Checks(DAG_CONTRACT)
    if not check_briefly(env, seconds, device=device):
        return
    obs, terminated = _play(env, Rng.of_seeds([0]).spawn(2), checks, device)
    _compare(env, obs, terminated, _edges_out(env, obs, terminated), False, checks)
    _numbers(env, obs, checks)
    texts = env.describe(obs[terminated])
    good = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    checks.require("describe", good and len(texts) == int(terminated.sum()), f"{texts!r:.80}")


def _play(env: DagEnv, rng: Rng, checks: Checks, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Run episodes with random actions; return the distinct states visited."""
    rng = Rng(rng.key.to(device))
    checks.require("discrete", isinstance(env.action_space, Discrete), env.action_space)
    tau = rollout(env, RandomAct(env.action_space, env.backend == "numpy"), rng)
    if tau.action_mask is None or tau.last is None:
        raise ContractError("discrete", "no action mask", DAG_CONTRACT)
    checks.require("ends", tau.terminated.all(), "an episode that goes on after", env.horizon, "steps")
    checks.require("ends", not tau.truncated.any(), "an episode that was cut")
    checks.require("one source", not differ(tau.obs[0], tau.obs[0, :1]).any(), "starts at", *tau.obs[0, :2].tolist())
    checks.require("one source", tau.mask[0].all(), "an episode that is over before its first step")
    checks.require("step reward", not tau.reward.any(), "a reward of", tau.reward[tau.reward != 0][:1].tolist())
    obs = torch.cat([tau.obs[tau.mask], tau.last])
    terminated = torch.arange(len(obs), device=obs.device) >= len(obs) - len(tau.last)
    at = states_at(env, obs, terminated)
    _agrees(at.action_mask, tau.action_mask[tau.mask], obs, "mask", checks)
    _agrees(at.terminated, terminated, obs, "terminated", checks)
    _agrees(at.obs, obs, obs, "obs", checks)
    checks.require("state_at", not at.reward.any() and not at.truncated.any(), "a reward, or truncated")
    _, _, some = distinct_keys(hash_key(obs, terminated))
    return obs[some], terminated[some]


def _agrees(given: Tensor | None, stepped: Tensor, obs: Tensor, what: str, checks: Checks) -> None:
    """Compare `state_at` with stepping over the first rows of obs (masks: of states that have not ended)."""
    assert given is not None
    wrong = differ(given[: len(stepped)], stepped)
    checks.require("state_at", not wrong.any(), what, *_first(wrong, given, "and not", stepped, "at", obs))


def _enumerate(env: DagEnv, states: int) -> Enumeration | None:
    """All states, identified by their bytes and not by the environment's `index`; None if there are too many."""
    try:
        if offers(env, Indexed) and env.n_states > states:
            return None
        graph = search(env, states, hash_key)
    except TooManyStates:
        return None
    except NotADag as fault:
        raise ContractError("ends", str(fault), DAG_CONTRACT) from fault
    return enumeration_of(graph, lambda obs: torch.zeros(len(obs)), hash_key)


def _compare_state_at(env: DagEnv, full: Enumeration, checks: Checks) -> None:
    to = step_from(env, full.obs[full.parent], full.action)
    at = states_at(env, to.obs, to.terminated)
    going = ~to.terminated
    _agrees(at.terminated, to.terminated, to.obs, "terminated", checks)
    _agrees(mask_of(at)[going], mask_of(to)[going], to.obs[going], "mask", checks)
    checks.require("step reward", not to.reward.any(), "reward", to.reward[to.reward != 0][:1].tolist())


def _edges_out(env: DagEnv, obs: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Valid steps between two of these states: rows of parents, actions, rows of children."""
    parent, action = (mask_of(states_at(env, obs, terminated)) & ~terminated[:, None]).nonzero(as_tuple=True)
    to = step_from(env, obs[parent], action)
    keys, order = hash_key(obs, terminated).sort()
    wanted = hash_key(to.obs, to.terminated)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    here = keys[place] == wanted
    return parent[here], action[here], order[place][here]


def _parents(env: DagEnv, obs: Tensor, terminated: Tensor, checks: Checks) -> Parents:
    """The edges that `parents` lists, each of them checked."""
    listed = env.parents(obs, terminated)
    parts = [getattr(listed, name, None) for name in ("child", "obs", "action")]
    checks.require("edge list", all(isinstance(x, Tensor) for x in parts), type(listed).__name__)
    child, before, action = listed.child, listed.obs, listed.action
    checks.require("edge list", len(child) == len(before) == len(action), "lengths", len(child), len(before), len(action))
    same = before.dtype == obs.dtype and before.shape[1:] == obs.shape[1:]
    checks.require("edge list", same, "obs", before.dtype, tuple(before.shape), "and not", obs.dtype, tuple(obs.shape))
    checks.require("edge list", child.dtype == action.dtype == torch.int64, "child, action", child.dtype, action.dtype)
    checks.require("edge list", ((child >= 0) & (child < len(obs))).all(), "a child that is none of", len(obs), "states")
    start = torch.as_tensor(env.reset(1, Rng.of_seeds([0], obs.device).drawn(1, env.backend == "numpy")).obs)
    source = ~differ(start.expand_as(obs), obs) & ~terminated
    checks.require("no parents", not source[child].any(), "parents", before[source[child]].tolist())
    outside = ~_inside(env.observation_space, before)
    checks.require("reachable", not outside.any(), *_first(outside, before, "as a parent of", obs[child]))
    at = states_at(env, before, torch.zeros_like(child, dtype=torch.bool))
    checks.require("parents unfinished", not at.terminated.any(), *_first(at.terminated, before, "as a parent of", obs[child]))
    mask = mask_of(at)
    possible = (action >= 0) & (action < mask.shape[1])
    invalid = ~possible | ~mask.gather(1, action.where(possible, 0)[:, None])[:, 0]
    checks.require("valid edges", not invalid.any(), *_first(invalid, "action", action, "at", before))
    to = step_from(env, before, action)
    astray = differ(to.obs, obs[child]) | (to.terminated != terminated[child])
    where = ("action", action, "from", before, "to", to.obs, "and not to", obs[child], "ended:", terminated[child])
    checks.require("leads here", not astray.any(), *_first(astray, *where))
    return listed


def _compare(
    env: DagEnv, obs: Tensor, terminated: Tensor, out: tuple[Tensor, Tensor, Tensor], complete: bool, checks: Checks
) -> None:
    """Compare `parents` and `edges_in` with the edges found by stepping (all edges if `complete`)."""
    listed = _parents(env, obs, terminated, checks)
    child, before, action = listed.child, listed.obs, listed.action
    number = hash_key(torch.stack([hash_key(before, child < 0), child, action], 1), child < 0)
    found, inverse, times = torch.unique(number, return_inverse=True, return_counts=True)
    twice = times[inverse] > 1
    checks.require("once", not twice.any(), *_first(twice, "action", action, "from", before, "more than once"))
    going = hash_key(obs, torch.zeros_like(terminated))
    truth = hash_key(torch.stack([going[out[0]], out[2], out[1]], 1), out[0] < 0)
    missing = ~torch.isin(truth, found)
    checks.require(
        "all edges", not missing.any(), *_first(missing, "no action", out[1], "from", obs[out[0]], "to", obs[out[2]])
    )
    if complete:
        extra = ~torch.isin(number, truth)
        checks.require("reachable", not extra.any(), *_first(extra, before, "as a parent of", obs[child]))
    if offers(env, CountsEdges):
        given, width = env.edges_in(obs, terminated), int(env.action_space.n)
        count = torch.bincount(child * width + action, minlength=len(obs) * width).reshape(len(obs), width)
        checks.require("edges_in", given.shape == count.shape, "shape", tuple(given.shape), "and not", tuple(count.shape))
        wrong = differ(given, count)
        checks.require("edges_in", not wrong.any(), *_first(wrong, given, "and not", count, "at", obs))


def _numbers(env: DagEnv, obs: Tensor, checks: Checks) -> None:
    if not offers(env, Indexed) or env.n_states >= 2**62:
        return
    n = env.n_states
    number = env.index(obs)
    checks.require("numbers", number.dtype == torch.int64 and number.shape == (len(obs),), number.dtype, tuple(number.shape))
    wrong = (number < 0) | (number >= n)
    checks.require("numbers", not wrong.any(), *_first(wrong, number, "of", n, "at", obs))
    bytes_of = hash_key(obs, torch.zeros_like(number, dtype=torch.bool))
    pairs = len(torch.unique(torch.stack([number, bytes_of], 1), dim=0))
    checks.require(
        "distinct", len(torch.unique(number)) == pairs, len(torch.unique(number)), "numbers for", pairs, "observations"
    )


def _objects(env: Any, obs: Tensor, terminated: Tensor, checks: Checks) -> None:
    """Check rewards, modes and descriptions of finished objects."""
    x = obs[terminated]
    log_r = _rewards(env, x, checks)
    checks.require("log_reward", log_r.isfinite().all(), *_first(~log_r.isfinite(), log_r, "at", x))
    if offers(env, PartialReward):
        partial = env.log_reward_partial(obs)
        checks.require("partial", partial.shape == (len(obs),), "shape", tuple(partial.shape))
        wrong = ~torch.isclose(partial[terminated].double(), log_r, rtol=1e-9, atol=1e-9)
        checks.require("partial", not wrong.any(), *_first(wrong, partial[terminated], "and not", log_r, "at", x))
    if offers(env, WithModes) and env.n_modes:
        mode = env.modes(x)
        checks.require("modes", mode.dtype == torch.int64 and mode.shape == (len(x),), mode.dtype, tuple(mode.shape))
        wrong = (mode < -1) | (mode >= env.n_modes)
        checks.require("modes", not wrong.any(), *_first(wrong, mode, "of", env.n_modes, "at", x))
    texts = env.describe(x)
    checks.require("describe", len(set(texts)) == len(texts) == len(x), len(set(texts)), "texts for", len(x), "objects")


def _rewards(env: DagEnv, x: Tensor, checks: Checks) -> Tensor:
    """log R of finished objects, its type and shape checked."""
    try:
        log_r = env.log_reward(x)
    except KeyboardInterrupt:
        raise
    except BaseException as fault:
        raise ContractError("log_reward", f"that it {raised(fault)}", DAG_CONTRACT) from fault
    checks.require("log_reward", isinstance(log_r, Tensor), f"a {type(log_r).__name__}")
    checks.require("log_reward", log_r.dtype == torch.float64 and log_r.shape == (len(x),), log_r.dtype, tuple(log_r.shape))
    return log_r


def _inside(space: Any, obs: Tensor) -> Tensor:
    """[M] bool: whether observations lie in a space of integers; True for any other space."""
    sizes = getattr(space, "nvec", getattr(space, "n", None)) if isinstance(space, Discrete | MultiDiscrete) else None
    if sizes is None:
        return torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    good = (obs >= 0) & (obs < torch.as_tensor(sizes, device=obs.device))
    return ~differ(good, torch.ones_like(good))


def _first(wrong: Tensor, *what: Any) -> list[Any]:
    """The rows of tensors at the first error; words are passed through."""
    if not bool(wrong.any()):
        return []
    at = int(wrong.nonzero()[0])
    return [x[at].tolist() if isinstance(x, Tensor) else x for x in what]
