"""check_dag(env): the contract every DAG environment obeys, on top of `check_env`.

    play       n episodes with random legal actions: they start at one state, pay nothing on the way and end by themselves
    stand      at each state they came by, `state_at` allows what stepping there allowed
    enumerate  all states and edges, by stepping alone, where they are few; elsewhere the states that were played
    compare    edges out with edges in, one by one, and what the environment says of its states with what was counted

Where the states are too many, edges that `parents` forgets are seen only among those played; edges too many are seen always.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from envs.check import ContractError, Ledger, RandomAct, check_env
from envs.core import DagEnv, Parents
from envs.dag.enumeration import Enumeration, enumeration_of
from envs.dag.search import NotADag, TooManyStates, advance, differ, hash_key, mask_of, search, stand
from envs.random import Rng
from envs.rollout import rollout

DAG_CONTRACT = {  # name: (the promise, what to do when it is broken)
    "dag members": ("the members of envs.core.DagEnv are there", "Add it to the class"),
    "discrete": ("actions are Discrete and states carry an action mask", "Number the actions, and say which are legal"),
    "ends": ("every episode ends by itself within the horizon", "Let every action lead closer to an end, or raise `horizon`"),
    "one source": ("all episodes start at the same unfinished state", "Leave what differs to the first action"),
    "worthless": ("steps bring reward 0", "Say what objects are worth in `log_reward`, and only there"),
    "state_at": ("state_at(obs, terminated) is what stepping there gives", "Compute flags and masks from obs and terminated"),
    "distinct": ("no two states have the same number", "Let `index` count every coordinate of the observation"),
    "numbers": ("index is int64, from 0 to n_states - 1", "Number observations from 0, and set n_states"),
    "edge list": ("parents returns rows child, obs, action of one length", "Return envs.core.Parents of torch tensors"),
    "no parents": ("the source has no parents", "Leave it out of the edge list"),
    "parents go on": ("no parent has ended", "List states before their last step only"),
    "legal edges": ("an edge's action is legal at its parent", "Leave out what the mask forbids"),
    "leads here": ("an edge's action leads from its parent to its child", "Undo exactly what `step` does"),
    "once": ("each edge is listed once", "Count distinct (parent, action) pairs"),
    "all edges": ("every legal step is among the edges into where it leads", "List the parents by every action"),
    "reachable": ("parents can be reached from the source", "Leave out states that no episode comes by"),
    "edges_in": ("edges_in counts the edges by action", "Count what `parents` lists"),
    "log_paths": ("log_paths is the log of the number of paths", "Count the ways from the source, parallel edges included"),
    "log_reward": ("log_reward is finite float64, one number for each object", "Take the log of positive numbers, in float64"),
    "partial": ("log_reward_partial is log_reward where an object is finished", "Let the extension end at the reward"),
    "modes": ("modes are int64, from -1 to n_modes - 1", "Number the modes from 0, and return -1 for none"),
    "describe": ("describe gives each object a text of its own", "Write down all that distinguishes objects"),
}


def check_dag(
    env: DagEnv, states: int = 20_000, episodes: int = 32, seed: int = 0, *, device: torch.device | str = "cpu"
) -> list[str]:
    """The promises that `env` kept: those of `check_env`, and those of DAG_CONTRACT.

    states    a DAG of at most so many states is checked edge by edge
    episodes  how many are played; where there are more states, those they came by are checked
    device    of the random keys, where a torch environment wants them elsewhere than on the CPU

    Raises ContractError at the first broken promise.
    """
    kept = check_env(env, seed=seed, device=device)
    ledger = Ledger(DAG_CONTRACT)
    for name in ("state_at", "parents", "log_reward", "describe"):
        ledger.hold("dag members", hasattr(env, name), "no", name)
    obs, terminated = _play(env, Rng.of_seeds([seed]).spawn(episodes), ledger, device)
    full = _enumerate(env, states)
    if full is not None:
        obs, terminated = full.obs, full.terminated
        _stand_everywhere(env, full, ledger)
    out = _edges_out(env, obs, terminated) if full is None else (full.parent, full.action, full.child)
    _compare(env, obs, terminated, out, full is not None, ledger)
    if full is not None and hasattr(env, "log_paths"):
        said, truth = env.log_paths(obs, terminated), full.log_paths()
        wrong = ~torch.isclose(said.double(), truth, rtol=1e-6, atol=1e-6)
        ledger.hold("log_paths", not wrong.any(), *_first(wrong, said, "and not", truth, "at", obs))
    _numbers(env, obs, ledger)
    _objects(env, obs, terminated, ledger)
    return kept + [DAG_CONTRACT[name][0] for name in ledger.kept]


def _play(env: DagEnv, rng: Rng, ledger: Ledger, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Episodes with random actions; returns the distinct states they came by."""
    rng = Rng(rng.key.to(device))
    ledger.hold("discrete", isinstance(env.action_space, Discrete), env.action_space)
    tau = rollout(env, RandomAct(env.action_space, env.backend == "numpy"), rng)
    if tau.action_mask is None or tau.last is None:
        raise ContractError("discrete", "no action mask", DAG_CONTRACT)
    ledger.hold("ends", tau.terminated.all(), "an episode that goes on after", env.horizon, "steps")
    ledger.hold("ends", not tau.truncated.any(), "an episode that was cut")
    ledger.hold("one source", not differ(tau.obs[0], tau.obs[0, :1]).any(), "starts at", *tau.obs[0, :2].tolist())
    ledger.hold("one source", tau.mask[0].all(), "an episode that is over before its first step")
    ledger.hold("worthless", not tau.reward.any(), "a reward of", tau.reward[tau.reward != 0][:1].tolist())
    obs = torch.cat([tau.obs[tau.mask], tau.last])
    terminated = torch.arange(len(obs), device=obs.device) >= len(obs) - len(tau.last)
    at = stand(env, obs, terminated)
    _stands(at.action_mask, tau.action_mask[tau.mask], obs, "mask", ledger)
    _stands(at.terminated, terminated, obs, "terminated", ledger)
    _stands(at.obs, obs, obs, "obs", ledger)
    ledger.hold("state_at", not at.reward.any() and not at.truncated.any(), "a reward, or truncated")
    keys, row = torch.unique(hash_key(obs, terminated), return_inverse=True)
    some = torch.empty_like(keys).scatter_(0, row, torch.arange(len(row), device=obs.device))
    return obs[some], terminated[some]


def _stands(given: Tensor | None, stepped: Tensor, obs: Tensor, what: str, ledger: Ledger) -> None:
    """What state_at gives against what stepping gave, over the first rows of obs (masks: of states that have not ended)."""
    assert given is not None
    wrong = differ(given[: len(stepped)], stepped)
    ledger.hold("state_at", not wrong.any(), what, *_first(wrong, given, "and not", stepped, "at", obs))


def _enumerate(env: DagEnv, states: int) -> Enumeration | None:
    """All states, told apart without the environment's own `index`; None where they are too many."""
    try:
        if (getattr(env, "n_states", None) or 0) > states:
            return None
        graph = search(env, states, hash_key)
    except TooManyStates:
        return None
    except NotADag as fault:
        raise ContractError("ends", str(fault), DAG_CONTRACT) from fault
    return enumeration_of(graph, lambda obs: torch.zeros(len(obs)), hash_key)


def _stand_everywhere(env: DagEnv, full: Enumeration, ledger: Ledger) -> None:
    to = advance(env, full.obs[full.parent], full.action)
    at = stand(env, to.obs, to.terminated)
    going = ~to.terminated
    _stands(at.terminated, to.terminated, to.obs, "terminated", ledger)
    _stands(mask_of(at)[going], mask_of(to)[going], to.obs[going], "mask", ledger)
    ledger.hold("worthless", not to.reward.any(), "reward", to.reward[to.reward != 0][:1].tolist())


def _edges_out(env: DagEnv, obs: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Legal steps from these states to one of them: rows of parents, actions, rows of children."""
    parent, action = (mask_of(stand(env, obs, terminated)) & ~terminated[:, None]).nonzero(as_tuple=True)
    to = advance(env, obs[parent], action)
    keys, order = hash_key(obs, terminated).sort()
    wanted = hash_key(to.obs, to.terminated)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    here = keys[place] == wanted
    return parent[here], action[here], order[place][here]


def _parents(env: DagEnv, obs: Tensor, terminated: Tensor, ledger: Ledger) -> Parents:
    """The edges that `parents` lists, each held to be one."""
    listed = env.parents(obs, terminated)
    parts = [getattr(listed, name, None) for name in ("child", "obs", "action")]
    ledger.hold("edge list", all(isinstance(x, Tensor) for x in parts), type(listed).__name__)
    child, before, action = listed.child, listed.obs, listed.action
    ledger.hold("edge list", len(child) == len(before) == len(action), "lengths", len(child), len(before), len(action))
    same = before.dtype == obs.dtype and before.shape[1:] == obs.shape[1:]
    ledger.hold("edge list", same, "obs", before.dtype, tuple(before.shape), "and not", obs.dtype, tuple(obs.shape))
    ledger.hold("edge list", child.dtype == action.dtype == torch.int64, "child, action", child.dtype, action.dtype)
    ledger.hold("edge list", ((child >= 0) & (child < len(obs))).all(), "a child that is none of", len(obs), "states")
    start = torch.as_tensor(env.reset(1, Rng.of_seeds([0], obs.device).drawn(1, env.backend == "numpy")).obs)
    source = ~differ(start.expand_as(obs), obs) & ~terminated
    ledger.hold("no parents", not source[child].any(), "parents", before[source[child]].tolist())
    outside = ~_inside(env.observation_space, before)
    ledger.hold("reachable", not outside.any(), *_first(outside, before, "as a parent of", obs[child]))
    at = stand(env, before, torch.zeros_like(child, dtype=torch.bool))
    ledger.hold("parents go on", not at.terminated.any(), *_first(at.terminated, before, "as a parent of", obs[child]))
    mask = mask_of(at)
    possible = (action >= 0) & (action < mask.shape[1])
    illegal = ~possible | ~mask.gather(1, action.where(possible, 0)[:, None])[:, 0]
    ledger.hold("legal edges", not illegal.any(), *_first(illegal, "action", action, "at", before))
    to = advance(env, before, action)
    astray = differ(to.obs, obs[child]) | (to.terminated != terminated[child])
    where = ("action", action, "from", before, "to", to.obs, "and not to", obs[child], "ended:", terminated[child])
    ledger.hold("leads here", not astray.any(), *_first(astray, *where))
    return listed


def _compare(
    env: DagEnv, obs: Tensor, terminated: Tensor, out: tuple[Tensor, Tensor, Tensor], complete: bool, ledger: Ledger
) -> None:
    """`parents` and `edges_in` against the edges found by stepping (all of them if `complete`)."""
    listed = _parents(env, obs, terminated, ledger)
    child, before, action = listed.child, listed.obs, listed.action
    number = hash_key(torch.stack([hash_key(before, child < 0), child, action], 1), child < 0)
    found, inverse, times = torch.unique(number, return_inverse=True, return_counts=True)
    twice = times[inverse] > 1
    ledger.hold("once", not twice.any(), *_first(twice, "action", action, "from", before, "more than once"))
    going = hash_key(obs, torch.zeros_like(terminated))
    truth = hash_key(torch.stack([going[out[0]], out[2], out[1]], 1), out[0] < 0)
    missing = ~torch.isin(truth, found)
    ledger.hold("all edges", not missing.any(), *_first(missing, "no action", out[1], "from", obs[out[0]], "to", obs[out[2]]))
    if complete:
        extra = ~torch.isin(number, truth)
        ledger.hold("reachable", not extra.any(), *_first(extra, before, "as a parent of", obs[child]))
    if hasattr(env, "edges_in"):
        said, width = env.edges_in(obs, terminated), int(env.action_space.n)  # type: ignore[attr-defined]
        count = torch.bincount(child * width + action, minlength=len(obs) * width).reshape(len(obs), width)
        ledger.hold("edges_in", said.shape == count.shape, "shape", tuple(said.shape), "and not", tuple(count.shape))
        wrong = differ(said, count)
        ledger.hold("edges_in", not wrong.any(), *_first(wrong, said, "and not", count, "at", obs))


def _numbers(env: DagEnv, obs: Tensor, ledger: Ledger) -> None:
    n = getattr(env, "n_states", None)
    if not hasattr(env, "index") or n is None or n >= 2**62:
        return
    number = env.index(obs)
    ledger.hold("numbers", number.dtype == torch.int64 and number.shape == (len(obs),), number.dtype, tuple(number.shape))
    wrong = (number < 0) | (number >= n)
    ledger.hold("numbers", not wrong.any(), *_first(wrong, number, "of", n, "at", obs))
    bytes_of = hash_key(obs, torch.zeros_like(number, dtype=torch.bool))
    pairs = len(torch.unique(torch.stack([number, bytes_of], 1), dim=0))
    ledger.hold("distinct", len(torch.unique(number)) == pairs, len(torch.unique(number)), "numbers for", pairs, "observations")


def _objects(env: Any, obs: Tensor, terminated: Tensor, ledger: Ledger) -> None:
    """What the environment says of finished objects x."""
    x = obs[terminated]
    try:
        worth = env.log_reward(x)
    except Exception as fault:
        raise ContractError("log_reward", f"{type(fault).__name__}: {fault}", DAG_CONTRACT) from fault
    ledger.hold("log_reward", worth.dtype == torch.float64 and worth.shape == (len(x),), worth.dtype, tuple(worth.shape))
    ledger.hold("log_reward", worth.isfinite().all(), *_first(~worth.isfinite(), worth, "at", x))
    if hasattr(env, "log_reward_partial"):
        partial = env.log_reward_partial(obs)
        ledger.hold("partial", partial.shape == (len(obs),), "shape", tuple(partial.shape))
        wrong = ~torch.isclose(partial[terminated].double(), worth, rtol=1e-9, atol=1e-9)
        ledger.hold("partial", not wrong.any(), *_first(wrong, partial[terminated], "and not", worth, "at", x))
    if getattr(env, "n_modes", 0):
        mode = env.modes(x)
        ledger.hold("modes", mode.dtype == torch.int64 and mode.shape == (len(x),), mode.dtype, tuple(mode.shape))
        wrong = (mode < -1) | (mode >= env.n_modes)
        ledger.hold("modes", not wrong.any(), *_first(wrong, mode, "of", env.n_modes, "at", x))
    texts = env.describe(x)
    ledger.hold("describe", len(set(texts)) == len(texts) == len(x), len(set(texts)), "texts for", len(x), "objects")


def _inside(space: Any, obs: Tensor) -> Tensor:
    """[M] bool, for spaces of whole numbers (of others nothing is said)."""
    sizes = getattr(space, "nvec", getattr(space, "n", None)) if isinstance(space, Discrete | MultiDiscrete) else None
    if sizes is None:
        return torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    good = (obs >= 0) & (obs < torch.as_tensor(sizes, device=obs.device))
    return ~differ(good, torch.ones_like(good))


def _first(wrong: Tensor, *what: Any) -> list[Any]:
    """Rows of tensors (and words between) where something is wrong first."""
    if not bool(wrong.any()):
        return []
    at = int(wrong.nonzero()[0])
    return [x[at].tolist() if isinstance(x, Tensor) else x for x in what]
