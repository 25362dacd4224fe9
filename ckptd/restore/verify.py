"""Looking whether what the log promises is there and whole. Reads only: nothing is quarantined, nothing repaired.

Without data: the chain of log records, each checkpoint's manifest, layout and index by their hashes, the existence and size of
each segment, also of those of its bases. With data: the stored hashes of all frames, or of a random sample of them. What a
restore would still decode is then known to be the very bytes that were written.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ckptd.commit.fold import EMPTY, State, fold
from ckptd.commit.state import Entry
from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.canonical import digest
from ckptd.model.index import Index
from ckptd.model.keys import index_key, layout_key, log_key, manifest_key
from ckptd.model.records import GENESIS, MAX_RECORD_BYTES, Record, decode
from ckptd.pipeline.threads import tasks
from ckptd.restore.checkpoint import Checkpoint, check_entry, open_index, open_layout, open_manifest
from ckptd.restore.fetch import check_stored, coalesce, decode_frame
from ckptd.restore.plan import FrameRead, frame_reads
from ckptd.store.base import Store, get_small

READ_BYTES: Final = 8 << 20  # of one range; with the concurrency it bounds the memory
MAX_BAD: Final = 1000  # objects named per checkpoint
_WINDOW: Final = 256
T = TypeVar("T")
R = TypeVar("R")

# (index, keys of its segments) → numbers of frames
Choose = Callable[[Index, Sequence[str]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Bad:
    """An object that isn't what it should be."""

    key: str
    problem: str


@dataclass(slots=True)
class LogReport:
    """Records ``first`` … ``tail`` were read. ``whole``: from record 0 on, and their fold is what readers start from."""

    first: int
    tail: int
    whole: bool = False
    bad: list[Bad] = field(default_factory=list)


@dataclass(slots=True)
class CheckpointReport:
    """What was looked at, and what is bad. ``ended``: retired or quarantined meanwhile, so its objects may go."""

    entry: Entry
    objects: int = 0
    stored_bytes: int = 0
    frames: int = 0
    read_frames: int = 0
    read_bytes: int = 0
    bad: list[Bad] = field(default_factory=list)
    ended: bool = False


async def verify_log(store: Store, job: str, state: State, records: int, concurrency: int) -> LogReport:
    """Check the last ``records`` records up to ``state``'s tail. Raises what the store raises.

    Each must be there, parse, and name the hash of the one before. From record 0 on their fold must be ``state``.
    """
    report = LogReport(max(0, state.tail + 1 - records), state.tail)
    previous = GENESIS if report.first == 0 else None
    folded: State | None = EMPTY if report.first == 0 else None
    for start in range(report.first, state.tail + 1, _WINDOW):
        numbers = range(start, min(start + _WINDOW, state.tail + 1))
        for seq, body in zip(numbers, await _each(numbers, lambda n: _record(store, job, n), concurrency), strict=True):
            problem, record = _look(seq, body, previous)
            previous = None if body is None else digest(body)
            folded = fold(folded, record)[0] if folded is not None and record is not None and not problem else None
            if problem:
                report.bad.append(Bad(log_key(job, seq), problem))
    if previous is not None and previous != state.last and not report.bad:
        report.bad.append(Bad(log_key(job, state.tail), "is not the record that it was when the log was loaded"))
    if folded is not None and folded != state:
        report.bad.append(Bad(log_key(job, state.tail), "names a folded state that isn't the fold of all records"))
    report.whole = report.first == 0 and not report.bad
    return report


async def _record(store: Store, job: str, seq: int) -> bytes | None:
    try:
        return await get_small(store, log_key(job, seq), MAX_RECORD_BYTES)
    except NotFoundError:
        return None


def _look(seq: int, body: bytes | None, previous: str | None) -> tuple[str, Record | None]:
    if body is None:
        return "is missing, with records after it", None
    try:
        record = decode(seq, body)
    except CorruptError as error:
        return str(error), None
    if previous is not None and record.previous != previous:
        return "doesn't follow the record before: one of the two was changed", record
    return "", record


async def verify_checkpoint(
    store: Store,
    job: str,
    entry: Entry,
    concurrency: int,
    choose: Choose,
    seen: Callable[[int], object] = lambda _: None,
    decoded: bool = False,
) -> CheckpointReport:
    """Check one commit and read the frames that ``choose`` picks: their stored hashes, and the raw ones too if ``decoded``.

    ``seen`` gets the bytes of each range once it is checked. Raises what the store raises, but for missing objects.
    """
    report = CheckpointReport(entry)
    checkpoint = await _described(store, job, report)
    if checkpoint is None:
        return report
    index = checkpoint.index
    keys = [checkpoint.segment_key(row) for row in range(len(index.segments))]
    report.objects += len(keys)
    report.stored_bytes = int(index.frames["stored_bytes"].sum())
    report.frames = len(index.frames)

    async def sized(row: int) -> str:
        try:
            size = (await store.info(keys[row])).size_bytes
        except NotFoundError:
            return "is missing"
        expected = index.segments[row].size_bytes
        return "" if size == expected else f"has {size} bytes instead of {expected}"

    problems = await _each(range(len(keys)), sized, concurrency)
    report.bad += [Bad(key, problem) for key, problem in zip(keys, problems, strict=True) if problem][:MAX_BAD]
    gone = {row for row, problem in enumerate(problems) if problem == "is missing"}
    chosen = frame_reads(index, choose(index, keys))
    reads = [read for read in chosen if read.segment not in gone]

    async def check(frames: Sequence[FrameRead]) -> Bad | None:
        bad = None
        key, start, end = keys[frames[0].segment], frames[0].offset, frames[-1].offset + frames[-1].stored_bytes
        try:
            body = memoryview(await store.get(key, start, end))
            for read in frames:
                stored = body[read.offset - start :][: read.stored_bytes]
                if decoded:
                    decode_frame(checkpoint, read, stored, memoryview(bytearray(read.raw_bytes)), key)
                else:
                    check_stored(checkpoint, read, stored, key)
        except NotFoundError:
            bad = Bad(key, "is missing")
        except CorruptError as error:
            bad = Bad(key, str(error))
        report.read_frames += len(frames)
        report.read_bytes += end - start
        seen(end - start)
        return bad

    # In the order of the reads, not of the replies: the same damage gives the same report.
    report.bad += [bad for bad in await _each(coalesce(reads, READ_BYTES, len(reads)), check, concurrency) if bad is not None]
    del report.bad[MAX_BAD:]
    return report


async def _described(store: Store, job: str, report: CheckpointReport) -> Checkpoint | None:
    """Manifest, layout and index, each looked at although another one is bad."""
    report.objects += 1
    try:
        manifest = await open_manifest(store, job, report.entry.manifest)
        check_entry(manifest, report.entry)
    except CorruptError as error:
        report.bad.append(Bad(manifest_key(job, report.entry.manifest), str(error)))
        return None
    report.objects += 2
    layout = index = None
    try:
        layout = await open_layout(store, job, manifest)
    except CorruptError as error:
        report.bad.append(Bad(layout_key(job, manifest.attempt.snapshot.generation, manifest.layout.hash), str(error)))
    try:
        index = await open_index(store, job, manifest, layout)
    except CorruptError as error:
        report.bad.append(Bad(index_key(job, manifest.attempt, manifest.index.hash), str(error)))
    return None if layout is None or index is None else Checkpoint(manifest, layout, index)


def sample(share: float, chance: random.Random) -> Choose:
    """``share`` of all frames (0: none, 1: all), at least one, picked with ``chance``."""

    def choose(index: Index, _keys: Sequence[str]) -> Iterable[int]:
        count = len(index.frames)
        if share >= 1 or not count:
            return range(count)
        return chance.sample(range(count), max(1, round(count * share))) if share > 0 else ()

    return choose


async def _each(things: Iterable[T], work: Callable[[T], Awaitable[R]], concurrency: int) -> list[R]:
    """The results of ``work`` on each, in order; at most ``concurrency`` at once."""
    slots, running = asyncio.Semaphore(concurrency), []
    async with tasks() as group:
        for thing in things:
            await slots.acquire()
            task = group.create_task(_one(work, thing))
            task.add_done_callback(lambda _: slots.release())
            running.append(task)
    return [task.result() for task in running]


async def _one(work: Callable[[T], Awaitable[R]], thing: T) -> R:
    return await work(thing)
