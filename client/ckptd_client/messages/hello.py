"""How a conversation begins, how people ask after the daemon, and what any request may be answered."""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL_VERSION = 1
WORLD_MAX = 1 << 20  # ranks
ONE_SAVE = "save-"  # what the key of a world begins with that is there for one snapshot
ROLES = ("trainer", "agent", "reader")

# (epoch, n) of a generation; (0, 0) is none
Gen = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hello:
    """First message. A trainer names its place in its world; ``world_key`` is "ADDR:PORT" of its master, unique when alone.

    A reader only says its rank, to be given what was stored for that one.

    After a reconnect ``generation`` is the one that the trainer was told, else (0, 0), and ``base_seq`` is 1 + the log number
    of the commit that it restored from, 0 when it restored none.
    """

    protocol: int
    role: str
    job: str
    rank: int
    world_size: int
    local_rank: int
    world_key: str
    generation: Gen
    base_seq: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon's answer: its node id and its incarnation."""

    protocol: int
    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The daemon won't talk; ``code`` is "version", "job" or "protocol"."""

    protocol: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Ok:
    """A request succeeded."""

    id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed; ``code`` is the error class's name in `errors`."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StatusAsk:
    """How is the daemon? ``protocol`` is the asker's."""

    protocol: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """A ckptd.v1.DaemonStatus."""

    body: bytes


def different_versions(theirs: int) -> str:
    """What to tell a user whose client and daemon don't speak the same protocol."""
    return (
        f"one side of this ckptd socket speaks protocol {theirs}, the other {PROTOCOL_VERSION};"
        " install the same version of ckptd and ckptd-client and restart the older one"
    )
