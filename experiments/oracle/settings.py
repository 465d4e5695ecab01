"""`OracleSettings`: how a user's reward is run, as flags of the commands that call one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import Batch, NonNegative, Range

CACHE = "runs/rewards.sqlite"


@dataclass(frozen=True, kw_only=True)
class OracleSettings:
    reward_command: str = ""
    """a program as the reward, the term `command` of the formula: a SMILES a line in, a number a line out, each flushed"""
    reward_timeout: NonNegative = 300.0
    """seconds that a call of your reward may take, after which its process is ended; 0: no limit. Loading it does not count"""
    reward_retries: Annotated[int, Range(0, 100)] = 0
    """how often a molecule is asked again after a timeout or an error"""
    reward_batch: Batch = 1
    """molecules that your reward is given in one call; those of a call that fails are asked again singly"""
    reward_recycle: Annotated[int, Range(0, 10**9)] = 1000
    """calls after which a process of your reward is replaced, because it may leak memory, if it has lived twenty times as long
    as it took to load; 0: never"""
    reward_cache: str = CACHE
    """file of answers, shared by runs, so that no molecule is scored twice; none: in memory, for this run alone"""
    reward_version: str = ""
    """a text of yours: answers are shared only under the same one. Change it when a model or data file of the reward changes"""
    executor: str = "processes"
    """where your reward runs: processes (of this machine, as many as there are workers), dask:local, or dask:tcp://HOST:PORT"""
