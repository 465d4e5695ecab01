"""The environment `molecules` of the command line: its settings, their vocabulary and their reward.

A run's config holds the whole vocabulary, not the name of a file, so that its folder is enough to go on and to sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Suppress

from envs.ranges import Finite, Positive, Range, Workers
from experiments.cli.errors import UserError
from experiments.cli.load import absolute
from experiments.cli.ranges import check_flags
from experiments.oracle.cache import cache_path
from experiments.oracle.settings import OracleSettings
from experiments.run import safe

if TYPE_CHECKING:
    from envs.core import DagEnv
    from envs.molecules.fragments import Fragment
    from gflownet.rewards.trees import TreeReward

NEEDS = "molecules need RDKit: pip install 'pgrl[molecules]'"


@dataclass(frozen=True)
class MoleculeSettings(OracleSettings):
    reward: str = "qed"
    """formula of terms: qed, sa, logp[1,3], mw[200,500], tpsa[20,120], rotors[0,8], similar[SMILES], pmo:TASK (of `gflownet
    list`), seh, file.py:function of a list of SMILES, command (--reward-command); with products a*b, powers a^2, means a+b or
    mean(a,b), weights 2*a+b"""
    beta: Positive = 8.0
    """inverse temperature: log R = beta · log(reward)"""
    r_min: Positive = 0.01
    """rewards are clipped to at least this, which is above 0"""
    r_max: Positive = 1e9
    """rewards are clipped to at most this"""
    fragments: str = ""
    """vocabulary: a file made by `gflownet fragments`, or the blocks file of Bengio et al. 2021; default: our 115 fragments"""
    convention: Literal["merged", "paper2021"] = "merged"
    """how to read the blocks file of 2021: merged (a fragment for each SMILES, all points open) or paper2021 (as published)"""
    max_blocks: Annotated[int, Range(2, 12)] = 8
    """maximum number of fragments in a molecule"""
    min_blocks: Annotated[int, Range(1, 12)] = 2
    """minimum number of fragments in a molecule"""
    seh_weights: str = ""
    """weights of the sEH proxy, best_params.pkl.gz or .npz; needed where the reward has the term seh (p/8)"""
    seh_variant: Literal["A", "B", "C"] = "A"
    """variant of the sEH proxy: A (Bengio et al. 2021), B (the trajectory balance papers), C (Recursion's gflownet code)"""
    mode_threshold: Finite = 0.8
    """modes, #Circles and scaffolds are counted above this reward (before beta); the papers: 0.875 (p > 7)"""
    reward_workers: Workers = 0
    """processes that compute the reward; 0: RDKit terms in this process, a reward of yours on as many as there are cores"""
    vocabulary: Suppress[str] = ""
    """the fragments themselves, as JSON, in a run's config"""
    digest: Suppress[str] = ""
    """SHA-256 of vocabulary"""
    seh_digest: Suppress[str] = ""
    """SHA-256 of the file of weights"""
    files: Suppress[str] = ""
    """where the functions that the reward names are, as JSON: name -> absolute path:function"""


def resolved(settings: MoleculeSettings) -> MoleculeSettings:
    """With the vocabulary written out and files as absolute paths. UserError for files that cannot be read."""
    _need_rdkit()
    from envs.molecules.fragments import as_json
    from gflownet.rewards.expression import Expression
    from gflownet.rewards.oracle import COMMAND

    if not settings.vocabulary:
        text = json.dumps(json.loads(as_json(_fragments(settings))), separators=(",", ":"))
        settings = replace(settings, vocabulary=text, digest=_digest(text))
    check_flags(settings)
    weights = str(Path(settings.seh_weights).resolve()) if settings.seh_weights else ""
    if settings.reward_command and settings.reward == MoleculeSettings.reward:
        settings = replace(settings, reward=COMMAND)
    try:
        functions = Expression.parse(settings.reward, ("seh",)).functions
    except ValueError as error:
        raise UserError(f"molecules: {error}") from error
    if settings.reward_command and COMMAND not in functions:
        raise UserError(
            f"--reward {settings.reward} has no term {COMMAND}, which --reward-command is for: add it, as in {COMMAND}*qed"
        )
    files = settings.files or json.dumps({name: absolute(name) for name in functions if name != COMMAND})
    cache = settings.reward_cache
    if functions and (path := cache_path(cache)) is not None:
        cache = str(path.absolute())
    return replace(
        settings,
        reward_cache=cache,
        fragments=str(Path(settings.fragments).resolve()) if settings.fragments else "",
        seh_weights=weights,
        seh_digest=settings.seh_digest or _digest_of_file(weights),
        files=files,
    )


def molecules(settings: MoleculeSettings, device: str) -> DagEnv:
    """The environment; its `reward` is a TreeReward. UserError or ValueError, one sentence each, for what does not fit."""
    _need_rdkit()
    from envs.molecules.block_trees import BlockTrees
    from envs.molecules.fragments import blocks_of

    settings = resolved(settings)
    fragments = vocabulary(settings)
    bare = BlockTrees(blocks_of(fragments), max_blocks=settings.max_blocks, min_blocks=settings.min_blocks, device=device)
    return bare.with_reward(_reward(settings, fragments, bare, device))


def tree_reward(env: DagEnv) -> TreeReward | None:
    """The reward of block trees as molecules, which knows their SMILES; None in every other environment."""
    from envs.molecules.block_trees import BlockTrees

    if not isinstance(env, BlockTrees):
        return None
    try:
        from gflownet.rewards.trees import TreeReward
    except ImportError:  # without RDKit there is none
        return None
    return env.reward if isinstance(env.reward, TreeReward) else None


def vocabulary(settings: MoleculeSettings) -> tuple[Fragment, ...]:
    """The fragments of a resolved config. UserError (exit code 3) where they are not those it was made with."""
    from envs.molecules.fragments import fragments_from_json

    if _digest(settings.vocabulary) != settings.digest:
        raise UserError(
            "the run was trained with other fragments than its config.json holds now: restore config.json, or train anew",
            exit_code=3,
        )
    return fragments_from_json(settings.vocabulary)


def title(settings: MoleculeSettings) -> str:
    return f"molecules of {settings.min_blocks} to {settings.max_blocks} blocks, R = ({settings.reward})^{settings.beta:g}"


def _fragments(settings: MoleculeSettings) -> tuple[Fragment, ...]:
    from envs.molecules.fragments import default_fragments, load_fragments

    if not settings.fragments and settings.convention == "merged":
        return default_fragments()
    if not settings.fragments:
        raise UserError(
            "--convention paper2021 is about the published blocks, got none: give --fragments blocks_PDB_105.json, or choose "
            "--convention merged for our own fragments"
        )
    try:
        return load_fragments(Path(settings.fragments), settings.convention)
    except OSError as error:
        raise UserError(f"--fragments {settings.fragments}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--fragments: {error}") from error


def _reward(settings: MoleculeSettings, fragments: tuple[Fragment, ...], env: Any, device: str) -> TreeReward:
    from experiments.oracle.executors import cores
    from experiments.oracle.make import make_oracle
    from gflownet.rewards.combine import MoleculeReward, Tempering
    from gflownet.rewards.expression import Expression
    from gflownet.rewards.oracle import COMMAND
    from gflownet.rewards.trees import TreeReward

    tempering = Tempering(settings.beta, settings.r_min, settings.r_max)
    expression = Expression.parse(settings.reward, ("seh",))
    where = _named(settings.files, [name for name in expression.functions if name != COMMAND])
    workers = settings.reward_workers or cores()
    oracles: dict[str, Any] = {}
    try:
        for name in expression.functions:
            oracles[name] = make_oracle(where.get(name, COMMAND), settings, workers)
        reward = MoleculeReward.of(settings.reward, tempering, ("seh",), oracles, workers=settings.reward_workers)
    except BaseException:
        for oracle in oracles.values():
            oracle.close()
        raise
    scores = {"seh": _seh(settings, fragments, device)} if "seh" in expression.outside else {}
    return TreeReward(fragments, reward, env.index, scores)


def _named(files: str, functions: Iterable[str]) -> dict[str, str]:
    """file.py:function as in the formula -> with the absolute path. UserError (exit code 3) for a damaged config."""
    try:
        found = json.loads(files)
        named = {name: found[name] for name in functions}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("config.json does not fit: files does not name each function of the reward", exit_code=3) from error
    if not all(isinstance(where, str) for where in named.values()):
        raise UserError("config.json does not fit: files names a function by what is no text", exit_code=3)
    return named


def _seh(settings: MoleculeSettings, fragments: tuple[Fragment, ...], device: str) -> Any:
    from envs.molecules.atom_tables import atom_tables
    from gflownet.rewards.seh import SehProxy, load_weights

    if not settings.seh_weights:
        raise UserError("the reward has the term seh: give the proxy's weights with --seh-weights best_params.pkl.gz (or .npz)")
    if settings.seh_digest and _digest_of_file(settings.seh_weights) not in ("", settings.seh_digest):
        raise UserError(f"{settings.seh_weights} holds other weights than those of the run: restore the file", exit_code=3)
    try:
        weights = load_weights(settings.seh_weights)
    except OSError as error:
        raise UserError(f"--seh-weights {settings.seh_weights}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--seh-weights: {error}") from error
    proxy = SehProxy(weights, atom_tables(fragments), settings.seh_variant, device=device)
    return lambda obs: proxy(obs) / 8


def _digest_of_file(path: str) -> str:
    """SHA-256, "" where there is none to read (reported when it is needed)."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(safe.read_named(Path(path))).hexdigest() if path else ""
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _need_rdkit() -> None:
    try:
        import rdkit  # noqa: F401
    except ImportError as error:
        raise UserError(NEEDS, exit_code=4) from error
