"""What the coordinator knows, as plain values. Nothing here does I/O, reads a clock or decides.

Messages change it (``apply``), decisions change it (``enact``), and ``decide`` and ``tell`` only read it. It holds no truth
that must survive: a new coordinator learns it again from the daemons' repeated facts and from the commit log.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from ckptd.model.ids import NO_GENERATION, Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb

MAX_OPEN_SNAPSHOTS: Final = 64
MAX_OUTCOMES: Final = 64
MAX_HELD_MESSAGES: Final = 4096
MAX_WORLD_SIZE: Final = 100_000
MAX_FAILURES: Final = 64


@dataclass(frozen=True, slots=True)
class Joined:
    """The node's agent waits to be part of the next generation; its workers, if it had any, are stopped.

    ``after`` is the last generation that the agent was in.
    """

    agent: str
    local_world_size: int
    min_nodes: int
    max_nodes: int
    since_seconds: float
    after: Generation


@dataclass(frozen=True, slots=True)
class MemberOf:
    """The node's agent runs workers of ``generation``. ``acknowledged``: the node has said so itself."""

    agent: str
    generation: Generation
    node_rank: int
    num_nodes: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The node's agent has ended."""

    agent: str
    failed: bool
    reason: str


@dataclass(slots=True)
class Node:
    """One daemon. ``told`` is what it was told on its present stream (see ``tell``).

    ``attached_seconds``: when it last came back. ``unconfirmed_seconds``: since when a new stream has said nothing of the
    agent, or of trainers, that we believe to be there. ``report`` is for people only.
    """

    id: str
    incarnation: str
    connected: bool
    last_heard_seconds: float
    agent: Joined | MemberOf | Gone | None = None
    left: bool = False
    unconfirmed_seconds: float | None = None
    attached_seconds: float = 0.0
    told: set[tuple[object, ...]] = field(default_factory=set)
    report: pb.NodeReport | None = None


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt: ``seq`` of its commit, or None and the reason why it was given up."""

    seq: int | None
    reason: str


@dataclass(slots=True)
class OpenSnapshot:
    """A snapshot on its way. ``world`` is None when it came from a generation that we don't know: it can only be aborted."""

    id: Snapshot
    number: int
    world: World | None
    since_seconds: float
    sealed: set[int] = field(default_factory=set)
    parts: dict[str, tuple[frozenset[int], bytes]] = field(default_factory=dict)
    missed: str | None = None
    settling: bool = False

    @property
    def attempt(self) -> Attempt:
        """The try at making it durable that is under way."""
        return Attempt(self.id, self.number)

    @property
    def uploaded(self) -> set[int]:
        """Ranks whose whole part is in the store."""
        return set().union(*(ranks for ranks, _ in self.parts.values()))

    @property
    def complete(self) -> bool:
        """Have all ranks of its world sealed it?"""
        return self.world is not None and self.world.whole and len(self.sealed) == self.world.world_size

    @property
    def stored(self) -> bool:
        """Are all ranks' parts in the store?"""
        return self.complete and self.uploaded == self.sealed


@dataclass(slots=True)
class LooseRank:
    """A trainer that registered without our rendezvous, whose world is not formed yet."""

    node: str
    process: str
    base_seq: int
    ready: bool
    asked: bool
    since_seconds: float


@dataclass(slots=True)
class Claim:
    """What daemons say about a generation that an earlier coordinator formed."""

    since_seconds: float
    members: set[str] = field(default_factory=set)
    ranks: dict[int, str] = field(default_factory=dict)
    world_key: str = ""
    world_size: int = 0


def _unknown(_attempt: Attempt) -> Outcome | None:
    return None


@dataclass(slots=True)
class State:
    """Everything. Times are seconds on the coordinator's monotonic clock.

    ``candidate`` and ``outcome_of`` are the commit log's view; ``log_busy`` counts log work that is asked for and not done;
    ``permit_seconds`` is when log[tail + 1] was last seen absent for a formation; ``held`` are messages about a generation that
    may yet be adopted; ``order`` is the last world's nodes by node rank.

    ``bases`` are the commits whose frames new snapshots may refer to; ``previous`` is the live commit before the candidate,
    ``bad`` are quarantined ones after it. ``fruitless`` counts failed worlds since the last commit, ``failures`` are the last
    of them; ``stepped_over`` is a commit that is done without, as a try. ``failed``: the job was not completed but stopped,
    ``stopped_agents`` heard of it: another one begins anew.
    """

    epoch: int
    started_seconds: float
    candidate: Target = NOTHING
    candidate_generation: Generation = NO_GENERATION
    bases: tuple[int, ...] = ()
    previous: Target = NOTHING
    bad: tuple[Target, ...] = ()
    fruitless: int = 0
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=MAX_FAILURES))
    failed_seconds: float = 0.0
    stepped_over: int | None = None
    failed: bool = False
    stopped_agents: frozenset[str] = frozenset()
    outcome_of: Callable[[Attempt], Outcome | None] = _unknown
    nodes: dict[str, Node] = field(default_factory=dict)
    world: World | None = None
    last_n: int = 0
    order: tuple[str, ...] = ()
    snapshots: dict[Snapshot, OpenSnapshot] = field(default_factory=dict)
    outcomes: dict[Attempt, Outcome] = field(default_factory=dict)
    release: Snapshot | None = None
    loose: dict[tuple[str, int], dict[int, LooseRank]] = field(default_factory=dict)
    claims: dict[Generation, Claim] = field(default_factory=dict)
    held: deque[tuple[str, object]] = field(default_factory=lambda: deque(maxlen=MAX_HELD_MESSAGES))
    complete: str | None = None
    complete_seconds: float = 0.0
    log_busy: int = 0
    log_trouble: str | None = None
    hint_trouble: str | None = None
    permit_asked: bool = False
    permit_seconds: float | None = None

    def begin_anew(self) -> None:
        """Forget failures: there is a commit, or somebody starts the job again."""
        self.fruitless, self.stepped_over = 0, None
        self.failures.clear()
        if self.failed:
            self.complete, self.failed, self.stopped_agents = None, False, frozenset()

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record what became of an attempt, and keep the last MAX_OUTCOMES for nodes that ask again."""
        opened = self.snapshots.get(attempt.snapshot)
        if opened is not None and opened.number == attempt.number:
            del self.snapshots[attempt.snapshot]
        self.outcomes.pop(attempt, None)
        self.outcomes[attempt] = outcome
        while len(self.outcomes) > MAX_OUTCOMES:
            del self.outcomes[next(iter(self.outcomes))]
