"""Small log work that nobody waits for: ending pins of restores that are over, and retiring what retention doesn't keep.

What to do is read off the log each time, so there is no queue that could be lost or grow: a new office finds the chores of the
last one, its pins included. One record at a time, so that a commit waits for one append at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, unpin
from ckptd.commit.retention import Retention, next_to_retire
from ckptd.commit.state import State
from ckptd.coordinator.restoring import epoch_of_holder
from ckptd.errors import CkptdError, OfficeLostError
from ckptd.model.records import Retire, Unpin

LOOK_SECONDS: Final = 1.0
_log = structlog.get_logger(__name__)


def next_chore(state: State, epoch: int, retention: Retention, in_use: str | None) -> Unpin | Retire | None:
    """What the office of ``epoch`` has to do next by this log, if anything. ``in_use``: the holder of its restore under way.

    Pins of earlier offices' restores end with those; those of a later one are not ours to end, should we be deposed.
    """
    for n, holders in state.pins.items():
        for who in sorted(holders):
            of = epoch_of_holder(who)
            if of is not None and of <= epoch and who != in_use:
                return Unpin(n, who)
    n_retired = next_to_retire(state, retention)
    return None if n_retired is None else Retire(n_retired)


class Tidier:
    """Does the chores of one office. ``in_use`` tells the holder of the restore under way; ``told`` hears what was retired."""

    def __init__(
        self,
        log: CommitLog,
        committer: Committer,
        retention: Retention,
        in_use: Callable[[], str | None],
        clock: Clock = SYSTEM_CLOCK,
        told: Callable[[str, str], None] = lambda _kind, _text: None,
    ) -> None:
        self._told = told
        self._log = log
        self._committer = committer
        self._retention = retention
        self._in_use = in_use
        self._clock = clock
        self._troubled = False

    async def run(self) -> None:
        """Until cancelled. Raises OfficeLostError when we must step down; other troubles wait for the next look."""
        while True:
            try:
                while await self._one():
                    self._troubled = False
            except OfficeLostError:
                raise
            except CkptdError as error:
                if not self._troubled:  # once per outage
                    _log.warning("retention waits", error=str(error))
                self._troubled = True
            await self._clock.sleep(LOOK_SECONDS)

    async def _one(self) -> bool:
        """Do one chore; was there any?"""
        state = self._log.state
        match next_chore(state, self._committer.office.epoch, self._retention, self._in_use()):
            case Unpin(n, who):
                await unpin(self._log, n, who)
                _log.info("unpinned", seq=n, who=who)
                return True
            case Retire(n):
                at = await self._committer.retire(n)
                step = state.commits[n].attempt.snapshot.step
                _log.info("retired", seq=n, step=step, record=at)
                self._told("retired", f"step {step}, record {n}: newer ones are kept")
                return True
        return False
