"""What ``decide`` may want. Each action carries its reason; ``enact`` makes it so."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.coordinator.world import Failure, Schedule, Target
from ckptd.model.ids import Generation, Snapshot


@dataclass(frozen=True, slots=True)
class DeclareDead:
    """``node`` no longer counts in the current generation."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Revive:
    """Nodes that were declared dead are back, with the same trainers, before there was another world."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskRegroup:
    """The current generation is broken; ``nodes`` are to stop their workers and join again. ``workers``: theirs failed."""

    nodes: tuple[str, ...]
    reason: str
    workers: bool = False


@dataclass(frozen=True, slots=True)
class CheckTail:
    """Ask the store whether we are still in office, before a generation is formed."""

    reason: str


@dataclass(frozen=True, slots=True)
class FormGeneration:
    """Form a generation of waiting agents, ``members`` in the order of their node ranks."""

    members: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class FormRanks:
    """Form a generation of trainers that registered without our rendezvous."""

    world_key: str
    world_size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go on with an earlier coordinator's generation; with ``broken`` only to end it in good order."""

    generation: Generation
    broken: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceSchedule:
    """These steps become snapshots."""

    schedule: Schedule


@dataclass(frozen=True, slots=True)
class PauseSchedule:
    """No further snapshots until every rank has a free slot again."""

    reason: str


@dataclass(frozen=True, slots=True)
class WithholdSchedule:
    """This generation gets no snapshots, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseBefore:
    """Slots of snapshots before this one may go."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class CommitAttempt:
    """Every part of the snapshot is in the store."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class AbortAttempt:
    """The snapshot will never be whole."""

    snapshot: Snapshot
    reason: str


@dataclass(frozen=True, slots=True)
class PinRestore:
    """Pin what the generation will be told to restore, in ``holder``'s name."""

    seq: int
    holder: str


@dataclass(frozen=True, slots=True)
class NameRestore:
    """The one thing for this generation to restore, and what is lost by it, in words."""

    target: Target
    loss: str


@dataclass(frozen=True, slots=True)
class RestoreGo:
    """Every rank has its part verified."""


@dataclass(frozen=True, slots=True)
class FailRestore:
    """No rank restores; ``quarantine`` is the log number of a commit that turned out bad."""

    reason: str
    quarantine: int | None


@dataclass(frozen=True, slots=True)
class CompleteJob:
    """All work is done."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecallEnd:
    """A run of an earlier coordinator ended with this generation."""

    generation: Generation
    reason: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """These agents, as (node, agent), begin no new run: they are told how the job ended."""

    agents: tuple[tuple[str, str], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class CountWorld:
    """The current generation is over; it failed by its workers, or not."""

    failure: Failure | None


@dataclass(frozen=True, slots=True)
class StepBack:
    """The next worlds are tried without the newest commit, ``over``."""

    over: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopJob:
    """The job can't go on by itself."""

    diagnosis: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do about ``topic`` yet, and why."""

    topic: str
    reason: str


Action = (
    DeclareDead
    | Revive
    | AskRegroup
    | CheckTail
    | FormGeneration
    | FormRanks
    | Adopt
    | AnnounceSchedule
    | PauseSchedule
    | WithholdSchedule
    | ReleaseBefore
    | CommitAttempt
    | AbortAttempt
    | PinRestore
    | NameRestore
    | RestoreGo
    | FailRestore
    | CompleteJob
    | RecallEnd
    | Dismiss
    | CountWorld
    | StepBack
    | StopJob
    | Wait
)
