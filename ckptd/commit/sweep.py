"""Carrying out a plan of ``collect``: in small batches, the log folded again before each (PROTOCOLS 4.7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.commit.collect import Item, Kind, Plan, make_plan, since
from ckptd.commit.forget import next_to_forget
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer
from ckptd.commit.state import State
from ckptd.errors import CkptdError, OfficeLostError
from ckptd.model.ids import Snapshot
from ckptd.store.base import ObjectInfo, Store

BATCH_OBJECTS: Final = 100
DELETES_AT_ONCE: Final = 4
ROUND_OBJECTS: Final = 2_000
MAX_ABORTS: Final = 16  # of one round
SHORTEST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Freed:
    """What an execution has deleted."""

    objects: int = 0
    size_bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.objects + other.objects, self.size_bytes + other.size_bytes)


async def execute(store: Store, log: CommitLog, plan: Plan, done: Callable[[Item], None] = lambda _item: None) -> Freed:
    """Delete what is due in ``plan``, as far as the log, read again before each batch, still says that it may go.

    Needs no office and may run beside others. ``done`` is told of each item that is gone. Raises what log and store raise; what
    was deleted until then is gone, and another plan finds the rest.
    """
    freed = Freed()
    for item in plan.due:
        for batch in _batches(item):
            if since(await log.refresh(), item.thing) is None:
                raise CkptdError(f"the plan doesn't follow from this log, so nothing more is deleted: {item.thing}")
            await _delete(store, batch)
            freed += Freed(len(batch), sum(info.size_bytes for info in batch))
        done(item)
    return freed


def _batches(item: Item) -> Iterator[Sequence[ObjectInfo]]:
    """The last object of a commit is its manifest: it goes alone, after all others."""
    objects = item.objects
    data = objects[:-1] if item.thing.kind is Kind.COMMIT else objects
    for start in range(0, len(data), BATCH_OBJECTS):
        yield data[start : start + BATCH_OBJECTS]
    if len(data) < len(objects):
        yield objects[-1:]


async def _delete(store: Store, objects: Sequence[ObjectInfo]) -> None:
    free = asyncio.Semaphore(DELETES_AT_ONCE)

    async def one(key: str) -> None:
        async with free:
            await store.delete(key)

    for result in await asyncio.gather(*(one(info.key) for info in objects), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class Collector:
    """Collects in the background for a coordinator. Nothing waits for it, and its troubles are its own.

    ``settled`` gives the snapshot before which every attempt is settled as far as the nodes know, None while nobody can tell.
    Data of earlier generations that lie there without a COMMIT or ABORT are of nodes that never came back: their attempts are
    aborted, and collected later. What is over and gone, the log forgets.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        log: CommitLog,
        committer: Committer,
        grace_seconds: float,
        settled: Callable[[], Snapshot | None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._job = job
        self._log = log
        self._committer = committer
        self._grace_seconds = grace_seconds
        self._settled = settled
        self._clock = clock
        self._modified: dict[int, float] = {}
        self._looked: tuple[int, Snapshot | None] | None = None  # at this there was nothing left to do or to wait for
        self._troubled = False

    async def run(self) -> None:
        """Until cancelled."""
        pause = min(LONGEST_WAIT_SECONDS, max(SHORTEST_WAIT_SECONDS, self._grace_seconds / 4))
        while True:
            more = await self._round_safely()
            await self._clock.sleep(SHORTEST_WAIT_SECONDS if more else pause)

    async def _round_safely(self) -> bool:
        try:
            more = await self.round()
            if self._troubled:
                _log.info("collection goes on", job=self._job)
            self._troubled = False
            return more
        except CkptdError as error:
            if not self._troubled and not isinstance(error, OfficeLostError):  # once; what must end us ends us elsewhere
                _log.warning("nothing is collected for now", job=self._job, error=str(error))
            self._troubled = True
            return False
        except Exception:
            _log.exception("collection failed; training is not concerned, please report this", job=self._job)
            return False

    async def round(self) -> bool:
        """Plan and delete a bounded amount; is there more to do at once? Raises what log and store raise."""
        state, settled = self._log.state, self._settled()
        if self._looked == (state.tail, settled):
            return False
        plan = await make_plan(self._store, self._job, state, self._grace_seconds, self._modified, ROUND_OBJECTS)
        freed = await execute(self._store, self._log, plan)
        passed = None if settled is None else settled.generation
        lost = [attempt for attempt in plan.unsettled if passed is not None and attempt.snapshot.generation < passed]
        for attempt in lost[:MAX_ABORTS]:
            _log.warning("an attempt that nobody speaks for any more is given up", job=self._job, attempt=str(attempt))
            await self._committer.abort(attempt)
        if freed.objects:
            _log.info("collected", job=self._job, objects=freed.objects, bytes=freed.size_bytes, waiting=len(plan.waiting))
        if not (plan.due or plan.waiting or lost):
            self._looked = (state.tail, settled)
            self._modified.clear()
        if not plan.more:
            await self._forget(state, plan, settled)
        return plan.more

    async def _forget(self, state: State, plan: Plan, settled: Snapshot | None) -> None:
        waiting = [item.thing.attempt for item in plan.waiting if item.thing.attempt is not None]
        before = next_to_forget(state, [*waiting, *plan.unsettled], settled)
        if before is not None:
            await self._committer.forget(before)
