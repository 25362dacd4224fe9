"""What a DCP `checkpoint_id` means here: a job, and maybe a step."""

from __future__ import annotations

import os
import re
from typing import Final

from ckptd_client.errors import ConfigError

_ID: Final = re.compile(r"(?:ckptd://)?([A-Za-z0-9_-]{1,64})(?:/(?:step[-_=]?)?(\d{1,15}))?/?")
STEP_MAX: Final = 10**15 - 1


def parse_id(checkpoint_id: str | os.PathLike[str]) -> tuple[str, int | None]:
    """(job, step or None) of ``JOB``, ``JOB/STEP`` or ``ckptd://JOB/STEP``. Raises ConfigError."""
    found = _ID.fullmatch(os.fspath(checkpoint_id)) if is_text(checkpoint_id) else None
    if found is None:
        raise ConfigError(
            "a checkpoint id of ckptd is JOB or JOB/STEP; a job has 1 to 64 letters, digits, '_' and '-'"
            f" checkpoint_id={str(checkpoint_id)[:200]!r}"
        )
    return found[1], None if found[2] is None else int(found[2])


def is_id(checkpoint_id: object) -> bool:
    """Whether `parse_id` would take it."""
    return is_text(checkpoint_id) and _ID.fullmatch(os.fspath(checkpoint_id)) is not None  # type: ignore[call-overload]


def is_text(value: object) -> bool:
    """Text, or a path that is text."""
    return isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str)


def named(job: str, step: int | None) -> str:
    """The id of them."""
    return job if step is None else f"{job}/{step}"


def check_step(step: int | None) -> int | None:
    """Raises ConfigError for what can't be a step."""
    if step is not None and (type(step) is not int or not 0 <= step <= STEP_MAX):
        raise ConfigError(f"a step is a whole number of 0 or more step={step!r}")
    return step
