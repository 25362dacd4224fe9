"""Keys of a job's objects in the store (PROTOCOLS 3): computed from identities, never taken from a stored text.

Keys are relative to the store's URL and start with the job. Every function here raises ConfigError for a bad job id and
CorruptError for any other part that is no identity, so a damaged or hostile text can't reach outside the job's own objects.
"""

from __future__ import annotations

import re

from ckptd.errors import CorruptError
from ckptd.model.canonical import is_hash, is_number
from ckptd.model.ids import Attempt, Generation, check_job

_STATE = re.compile(r"(\d{20})-[0-9a-f]{64}")
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


def state_prefix(job: str) -> str:
    """What all folded states' keys start with."""
    return f"{check_job(job)}/state/"


def state_key(job: str, seq: int, state_hash: str) -> str:
    """The folded state of the log before record ``seq``, which names it by its content."""
    return f"{state_prefix(job)}{_number(seq):020d}-{_hash(state_hash)}"


def seq_of_state(name: str) -> int | None:
    """``seq`` of a ``state_key``'s last part; None for what is none."""
    found = _STATE.fullmatch(name)
    return None if found is None else int(found[1])


def manifest_prefix(job: str) -> str:
    """What all manifests' keys start with."""
    return f"{check_job(job)}/manifest/"


def manifest_key(job: str, manifest_hash: str) -> str:
    """A manifest, named by its content."""
    return f"{manifest_prefix(job)}{_hash(manifest_hash)}"


def layouts_prefix(job: str) -> str:
    """What all layouts' keys start with; the names right below are generations."""
    return f"{check_job(job)}/layout/"


def layout_prefix(job: str, generation: Generation) -> str:
    """What the keys of one generation's layouts start with."""
    return f"{layouts_prefix(job)}{generation}/"


def layout_key(job: str, generation: Generation, layout_hash: str) -> str:
    """A layout of one generation, named by its content: never shared between generations, so it can go with the last commit."""
    return f"{layout_prefix(job, generation)}{_hash(layout_hash)}"


def attempts_prefix(job: str) -> str:
    """What the keys of all attempts' data start with; the names right below are attempts."""
    return f"{check_job(job)}/data/"


def data_prefix(job: str, attempt: Attempt) -> str:
    """What the keys of all segments and the index of one attempt start with."""
    return f"{attempts_prefix(job)}{attempt}/"


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


def clock_key(job: str) -> str:
    """An object that is put to learn the store's own time from its Last-Modified."""
    return f"{check_job(job)}/CLOCK"


def _hash(text: str) -> str:
    if not is_hash(text):
        raise CorruptError(f"not a blake2b-256 digest: {text[:80]!r}")
    return text


def _number(n: int) -> int:
    if not is_number(n):
        raise CorruptError(f"not a number that we would have given: {n!r:.40}")
    return n
