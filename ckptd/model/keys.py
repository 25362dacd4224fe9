"""Keys of a job's objects in the store (PROTOCOLS 3): computed from identities, never taken from a stored text.

Keys are relative to the store's URL and start with the job. Every function here raises ConfigError for a bad job id and
CorruptError for any other part that is no identity, so a damaged or hostile text can't reach outside the job's own objects.
"""

from __future__ import annotations

import re

from ckptd.errors import CorruptError
from ckptd.model.ids import Attempt, check_job
from ckptd.model.records import is_hash, is_number

_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_writer(writer: str) -> str:
    """``writer`` (a daemon's node id with its incarnation) if it may be part of a key, else CorruptError."""
    if not _WRITER.fullmatch(writer):
        raise CorruptError(f"a writer's name has 1 to 128 letters, digits, '.', '_' and '-'; got {writer[:140]!r}")
    return writer


def log_prefix(job: str) -> str:
    """What all log records' keys start with."""
    return f"{check_job(job)}/log/"


def log_key(job: str, seq: int) -> str:
    """Record ``seq`` of the commit log."""
    return f"{log_prefix(job)}{_number(seq):020d}"


def state_key(job: str, state_hash: str) -> str:
    """A folded state of the log, named by its content."""
    return f"{check_job(job)}/state/{_hash(state_hash)}"


def manifest_key(job: str, manifest_hash: str) -> str:
    """A manifest, named by its content."""
    return f"{check_job(job)}/manifest/{_hash(manifest_hash)}"


def layout_key(job: str, layout_hash: str) -> str:
    """A layout, named by its content."""
    return f"{check_job(job)}/layout/{_hash(layout_hash)}"


def data_prefix(job: str, attempt: Attempt) -> str:
    """What the keys of all segments and the index of one attempt start with."""
    return f"{check_job(job)}/data/{attempt}/"


def segment_key(job: str, attempt: Attempt, writer: str, n: int) -> str:
    """Segment ``n`` (from 0) that ``writer`` wrote for ``attempt``."""
    return f"{data_prefix(job, attempt)}{check_writer(writer)}-{_number(n)}.seg"


def index_key(job: str, attempt: Attempt, index_hash: str) -> str:
    """An index of ``attempt``, named by its content: two offices may assemble one attempt from different parts."""
    return f"{data_prefix(job, attempt)}{_hash(index_hash)}.idx"


def latest_key(job: str) -> str:
    """A hint at the log's tail: a place to start, never trusted (PROTOCOLS 4.5)."""
    return f"{check_job(job)}/LATEST"


def leader_key(job: str) -> str:
    """A hint at the coordinator's address (PROTOCOLS 4.4)."""
    return f"{check_job(job)}/LEADER"


def _hash(text: str) -> str:
    if not is_hash(text):
        raise CorruptError(f"not a blake2b-256 digest: {text[:80]!r}")
    return text


def _number(n: int) -> int:
    if not is_number(n):
        raise CorruptError(f"not a number that we would have given: {n!r:.40}")
    return n
