"""The checkpoints of a job as people see them: what `ckptd ls` shows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum

from ckptd.commit.fold import restore_candidate
from ckptd.commit.state import Entry, State
from ckptd.model.ids import Attempt, Generation


class Status(StrEnum):
    """What became of a commit."""

    LIVE = "live"
    RETIRED = "retired"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One commit: ``seq`` is its number in the log and its name everywhere. ``newest``: a restore would take this one.

    ``base_of``: the log numbers of live or pinned commits that refer to its frames.
    """

    seq: int
    attempt: Attempt
    manifest: str
    parent: int | None
    status: Status
    newest: bool
    pins: tuple[str, ...]
    base_of: tuple[int, ...]

    @property
    def step(self) -> int:
        """Completed steps; the same number comes again after stepping back, so it names nothing."""
        return self.attempt.snapshot.step

    @property
    def generation(self) -> Generation:
        """The world that made it."""
        return self.attempt.snapshot.generation


def catalog(state: State) -> tuple[CatalogEntry, ...]:
    """All counted commits in log order, whatever became of them."""
    newest = restore_candidate(state)
    base_of = defaultdict[int, list[int]](list)
    for entry in state.commits.values():
        if entry.live or entry.n in state.pins:
            for base in entry.bases:
                base_of[base].append(entry.n)
    return tuple(
        CatalogEntry(
            seq=entry.n,
            attempt=entry.attempt,
            manifest=entry.manifest,
            parent=entry.parent,
            status=_status(entry),
            newest=entry is newest,
            pins=tuple(sorted(state.pins.get(entry.n, ()))),
            base_of=tuple(base_of.get(entry.n, ())),
        )
        for entry in state.commits.values()
    )


def _status(entry: Entry) -> Status:
    if entry.quarantined_at is not None:
        return Status.QUARANTINED
    return Status.LIVE if entry.live else Status.RETIRED
