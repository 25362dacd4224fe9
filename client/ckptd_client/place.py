"""Where this process stands in its job, from torchrun's variables."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
from dataclasses import dataclass

from ckptd_client.errors import ConfigError

_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class Place:
    """This process's place in its job; ``job`` is empty when nobody has named one."""

    job: str
    rank: int
    world_size: int
    local_rank: int
    world_key: str


def find_place(job: str | None) -> Place:
    """Read it from the environment; ``job`` goes before CKPTD_JOB and TORCHELASTIC_RUN_ID. Raises ConfigError."""
    env = os.environ
    run = env.get("TORCHELASTIC_RUN_ID")
    name = job or env.get("CKPTD_JOB") or (run if run != "none" else None)  # "none" is torchrun's own default
    if name is None:
        name = ""
    elif not _JOB.fullmatch(name):
        raise ConfigError(f"a job id has 1 to 64 letters, digits, '_' and '-' job={name!r}")
    try:
        world = int(env.get("WORLD_SIZE", "1"))
        rank, local = int(env.get("RANK", "0")), int(env.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ConfigError(f"RANK, LOCAL_RANK and WORLD_SIZE must be numbers error={error}") from error
    if not 0 <= rank < world or local < 0:
        raise ConfigError(f"RANK must be below WORLD_SIZE rank={rank} world_size={world}")
    if "WORLD_SIZE" not in env:
        return Place(name, 0, 1, 0, f"alone-{secrets.token_hex(8)}")
    try:
        return Place(name, rank, world, local, f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}")
    except KeyError as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but {error.args[0]} is not; start with torchrun, or set all of its variables"
        ) from error


def die_with_agent() -> None:
    """A killed torch elastic agent must leave no orphan workers: have the kernel end this one when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
