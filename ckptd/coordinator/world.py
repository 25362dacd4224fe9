"""One generation, as the coordinator knows it: its ranks, what they restore, its schedule. Plain values, as in `state`."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from ckptd.model.ids import Generation


@dataclass(frozen=True, slots=True)
class Report:
    """How one rank's part of a restore went; ``error`` is empty when it was verified."""

    error: str
    corrupt: bool


@dataclass(slots=True)
class Rank:
    """One trainer process of a generation."""

    node: str
    process: str = ""
    base_seq: int = 0
    up: bool = False
    ready: bool = False
    asked: bool = False
    report: Report | None = None
    finished: bool = False
    gone: str | None = None
    step: int = 0
    free_slots: int = 0  # as a heartbeat has told since snapshots were last paused
    replaced: bool = False
    counted: bool = False  # a heartbeat has told its step
    bound: bool = False  # its daemon knows that it belongs to this generation


@dataclass(frozen=True, slots=True)
class Place:
    """A node's place in a generation."""

    node_rank: int
    local_world_size: int


@dataclass(frozen=True, slots=True)
class Target:
    """What a generation is told to restore; ``seq`` None: there is nothing."""

    seq: int | None
    step: int
    manifest: str


NOTHING: Final = Target(None, 0, "")


@dataclass(frozen=True, slots=True)
class Failure:
    """A world that workers broke: from which step on, and which of them failed first, in words."""

    generation: Generation
    step: int
    what: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps first, first + every, … become snapshots; every = 0: none until there is another schedule."""

    first: int
    every: int


PAUSED: Final = Schedule(0, 0)


@dataclass(slots=True)
class World:
    """One generation. ``whole`` is False when its members are not all known: then nothing of it can be committed.

    ``restore_loss``: what is lost by its target; ``spoilt``: that was quarantined. ``workers_failed``: so it broke;
    ``failing``: what agents said of their workers' failures, the first first; ``counted``: see `fruitless`.
    """

    id: Generation
    source: Literal["rendezvous", "ranks"]
    world_key: str
    world_size: int
    members: dict[str, Place]
    formed_seconds: float
    last_progress_seconds: float
    whole: bool = True
    ranks: dict[int, Rank] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    broken: str | None = None
    broken_seconds: float = 0.0
    holder: str | None = None  # of the pin on what it is to restore
    pinned: int | None = None
    target: Target | None = None
    restore: Literal["open", "go", "failed"] = "open"
    restore_failure: str = ""
    restore_loss: str = ""
    spoilt: bool = False
    workers_failed: bool = False
    failing: dict[str, str] = field(default_factory=dict)
    counted: bool = False
    reported_seconds: float | None = None
    schedule: Schedule | None = None
    paused: str = ""  # why, while the schedule is PAUSED
    paused_seconds: float = 0.0
    unscheduled: str | None = None
    last_commit_seconds: float | None = None
    furthest_step: int = 0
    furthest_seconds: float | None = None
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=32))

    @property
    def finishing(self) -> bool:
        """Has any rank finished? Then nobody is asked to do the last steps again."""
        return any(rank.finished for rank in self.ranks.values())

    @property
    def median_step_seconds(self) -> float:
        """Median time of the last steps, 0 while unknown."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0

    def host(self, rank: int) -> str | None:
        """The node that runs ``rank``: by place under a rendezvous, by registration otherwise."""
        if self.source == "ranks":
            return self.ranks[rank].node if rank in self.ranks else None
        first = 0
        for node, place in sorted(self.members.items(), key=lambda item: item[1].node_rank):
            if first <= rank < first + place.local_world_size:
                return node
            first += place.local_world_size
        return None
