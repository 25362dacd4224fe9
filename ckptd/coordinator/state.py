"""What the coordinator knows, as plain values. Nothing here does I/O, reads a clock or decides.

Messages change it (``apply``), decisions change it (``enact``), and ``decide`` and ``tell`` only read it. It holds no truth
that must survive: a new coordinator learns it again from the daemons' repeated facts and from the commit log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ckptd.coordinator.world import NOTHING, Failure, Target, World
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
    finished: set[int] = field(default_factory=set)
    world_key: str = ""
    world_size: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last run that is over ended, and with which generation. ``failed``: it was not completed but stopped.

    ``agents``, as (node, agent), are those that have heard of it, or must: the ones that lived then. ``absent`` are nodes of
    the run where nobody lived to hear of it.
    """

    generation: Generation
    reason: str
    failed: bool
    seconds: float
    agents: frozenset[tuple[str, str]]
    absent: frozenset[str]


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
    of them; ``stepped_over`` is a commit that is done without, as a try. ``ended`` is remembered while the next run is at work,
    for stragglers of the one that ended.
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
    ended: Ended | None = None
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
    log_busy: int = 0
    log_trouble: str | None = None
    hint_trouble: str | None = None
    permit_asked: bool = False
    permit_seconds: float | None = None

    @property
    def over(self) -> Ended | None:
        """How the job ended, until the next run has a world."""
        ended, world = self.ended, self.world
        return ended if ended is not None and world is not None and world.id <= ended.generation else None

    def begin_anew(self) -> None:
        """Forget failures: there is a commit, or somebody starts the job again."""
        self.fruitless, self.stepped_over = 0, None
        self.failures.clear()

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record what became of an attempt, and keep the last MAX_OUTCOMES for nodes that ask again."""
        opened = self.snapshots.get(attempt.snapshot)
        if opened is not None and opened.number == attempt.number:
            del self.snapshots[attempt.snapshot]
        self.outcomes.pop(attempt, None)
        self.outcomes[attempt] = outcome
        while len(self.outcomes) > MAX_OUTCOMES:
            del self.outcomes[next(iter(self.outcomes))]
