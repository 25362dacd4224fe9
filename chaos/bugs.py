"""Bugs of our own, each in one of our functions: a campaign that can't see them proves nothing.

ckptd has no hooks for this. The process that is to have the bug loads `shim/sitecustomize.py`, which replaces the function
before ckptd's main program starts.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


def _skip_an_fsync() -> None:
    from ckptd.store import directory

    directory._sync = lambda descriptor: None


def _take_a_409_for_success() -> None:
    from ckptd.commit.log import CommitLog
    from ckptd.errors import UnavailableError

    right = CommitLog._create_or_read

    async def wrong(self: CommitLog, seq: int, data: bytes) -> bytes:
        try:
            return await right(self, seq, data)
        except UnavailableError as error:
            if "ConditionalRequestConflict" in str(error):
                return data
            raise

    CommitLog._create_or_read = wrong  # type: ignore[method-assign]


def _commit_before_the_last_put() -> None:
    from ckptd.pipeline import write

    right = write._Upload.__init__

    class Later:
        """Says that all is stored, and stores it in its own time."""

        def __init__(self, store: Any) -> None:
            self._store, self._tasks = store, set[asyncio.Task[None]]()

        async def put(self, key: str, pieces: Any) -> None:
            body = b"".join(pieces)

            async def later() -> None:
                await asyncio.sleep(1.0)
                await self._store.put(key, body)

            self._tasks.add(asyncio.create_task(later()))

    def wrong(self: Any, store: Any, *rest: Any, **named: Any) -> None:
        right(self, Later(store), *rest, **named)  # type: ignore[arg-type]

    write._Upload.__init__ = wrong  # type: ignore[method-assign]


def _drop_the_epoch_check() -> None:
    from ckptd.commit import fold
    from ckptd.commit.log import CommitLog
    from ckptd.coordinator.durable import LogWorker

    judged, append, draft = fold._void, CommitLog.append, CommitLog._draft
    office_of: dict[int, Any] = {}

    def lax(state: Any, record: Any) -> Any:
        void = judged(state, record)
        return None if void is fold.Void.STALE_OFFICE else void

    async def wrong_append(self: CommitLog, decide: Any, office: Any = None) -> Any:
        office_of[id(self)] = office
        return await append(self, decide, None)

    def wrong_draft(self: CommitLog, state: Any, body: Any, office: Any) -> Any:
        return draft(self, state, body, office_of.get(id(self)))

    async def check_nothing(self: LogWorker) -> None:
        await self._log.refresh()

    fold._void = lax
    CommitLog.append, CommitLog._draft = wrong_append, wrong_draft  # type: ignore[method-assign]
    LogWorker.check_office = check_nothing  # type: ignore[method-assign]


def _serve_a_writing_slot() -> None:
    """The slot is sealed and served while the copy of the tensors into it still runs."""
    from ckptd_client.staging import Stager

    right = Stager.stage

    class Hasty:
        """A plan that copies the objects, and leaves the tensors to a thread."""

        def __init__(self, plan: Any) -> None:
            self._plan = plan

        def copy_into(self, arena: Any, slot: int, found: Any) -> list[int]:
            def copy() -> None:
                time.sleep(0.05)
                self._plan.copy_into(arena, slot, found)

            lengths: list[int] = self._plan.copy_objects(arena, slot, found)
            threading.Thread(target=copy).start()
            return lengths

    def wrong(self: Any, *arguments: Any, **named: Any) -> Any:
        plan, self._plan = self._plan, Hasty(self._plan)
        try:
            return right(self, *arguments, **named)
        finally:
            self._plan = plan

    Stager.stage = wrong  # type: ignore[method-assign]


def _ignore_a_hash() -> None:
    from ckptd.codec.frames import decode_into
    from ckptd.restore import fetch

    def wrong(checkpoint: Any, read: Any, stored: Any, destination: memoryview, key: str) -> None:
        decode_into(int(checkpoint.index.frames[read.frame]["codec"]), stored, destination)

    fetch.decode_frame = wrong


def _reuse_a_segment_key() -> None:
    """Segments are named by generation, node and number alone: a daemon's next life begins again with number 0."""
    from ckptd.model import keys
    from ckptd.pipeline import write
    from ckptd.restore import fetch

    right = keys.segment_key

    def wrong(job: str, attempt: Any, writer: str, n: int) -> str:
        first = type(attempt)(type(attempt.snapshot)(attempt.snapshot.generation, 0), 0)
        return right(job, first, f"{writer.partition('.')[0]}.{'0' * 16}", n)

    for module in (write, fetch):
        module.segment_key = wrong  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Bug:
    """``roles``: the processes that have it. ``trial``: in which it shows; ``caught``: how its catcher says so."""

    name: str
    infect: Callable[[], None]
    roles: frozenset[str]
    act: str
    trial: str
    caught: str
    catcher: str


_COORDINATOR: Final = frozenset({"coordinator"})
_DAEMON: Final = frozenset({"daemon"})

BUGS: Final[dict[str, Bug]] = {
    bug.name: bug
    for bug in (
        Bug(
            "skip an fsync", _skip_an_fsync, _COORDINATOR | _DAEMON, "disk", "kill trainer",
            "D1: ", "bytes are on the disk before they are visible (D1)",
        ),
        Bug(
            "take a 409 for success", _take_a_409_for_success, _COORDINATOR, "way", "S3 says 409 to creates",
            "I4: acknowledged|log has a gap", "acknowledged means in the log (I4)",
        ),
        Bug(
            "commit before the last PUT", _commit_before_the_last_put, _DAEMON, "way", "kill trainer",
            "I2: ", "a commit's objects exist (I2)",
        ),
        Bug(
            "drop the epoch check", _drop_the_epoch_check, _COORDINATOR, "way", "stop coordinator, replaced",
            "I3: |chain breaks", "one office commits (I3)",
        ),
        Bug(
            "serve a WRITING slot", _serve_a_writing_slot, frozenset({"trainer"}), "way", "kill trainer",
            "I5: ", "every byte is of its step (I5)",
        ),
        Bug(
            "ignore a hash", _ignore_a_hash, _DAEMON, "disk", "segment flipped",
            "I5: ", "every byte is of its step (I5)",
        ),
        Bug(
            "reuse a segment key", _reuse_a_segment_key, _DAEMON, "way", "kill daemon",
            "K1: ", "no key is written twice with other bytes (K1)",
        ),
    )
}  # fmt: skip


def role() -> str:
    """What this process is going to be, by its command line."""
    arguments = sys.orig_argv
    if any(argument.endswith("standin.py") for argument in arguments):
        return "trainer"
    ours = "-m" in arguments and arguments[arguments.index("-m") + 1 : arguments.index("-m") + 2] == ["ckptd"]
    return arguments[arguments.index("ckptd") + 1] if ours else ""


def infect(name: str) -> None:
    """Have the bug, if this is a process that is to have it."""
    if role() in BUGS[name].roles:
        BUGS[name].infect()
