"""Chains of checkpoints that refer to each other, as two nodes' daemons write them: restored bit-exactly, whatever else is
retired, collected, quarantined or damaged; and what is lost is found in each that needs it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from chaos.invariants import Inspector
from chaos.objects import DirectoryObjects
from ckptd.cli.app import app
from ckptd.commit.assemble import BaseGoneError
from ckptd.commit.collect import make_plan
from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, pin, take_office
from ckptd.commit.retention import Retention, next_to_retire
from ckptd.commit.state import Entry
from ckptd.commit.sweep import execute
from ckptd.coordinator.assembling import assembler
from ckptd.coordinator.confirming import confirmer
from ckptd.errors import CorruptError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.pipeline.unchanged import Base, remember
from ckptd.pipeline.write import WriteOptions, layout_of, write_part
from ckptd.restore.checkpoint import open_checkpoint
from ckptd.restore.verify import sample, verify_checkpoint
from ckptd.store.directory import DirectoryStore
from ckptd_client.messages.restoring import Want
from tests.restore.states import JOB, Slot, load, region
from tests.restore.test_verify import cut, flip, found, verify

ROWS, WIDTH = 64, 16
OPTIONS = WriteOptions(frame_bytes=256, segment_bytes=1024, codec="planes")
SHAPES = {"backbone": (ROWS, WIDTH), "embedding": (ROWS, WIDTH), "adapter": (6, 5)}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Run:
    """A job of two nodes with a rank each. ``values`` is the live state; ``saved`` what it was at each commit."""

    def __init__(self, root: Path, pool: ThreadPoolExecutor) -> None:
        self.store, self._pool = DirectoryStore(root), pool
        self.log = CommitLog(self.store, JOB)
        rng = np.random.default_rng(3)
        self.values = {name: rng.integers(0, 99, shape).astype("<u4") for name, shape in SHAPES.items()}
        self.saved: dict[int, dict[str, np.ndarray]] = {}
        self.step = 0
        self.bases: list[Base | None] = [None, None]
        self._lives = ["n0.a", "n1.a"]
        self._numbers = itertools.count()

    async def start(self) -> None:
        self.committer = Committer(self.log, await take_office(self.log))
        self._assemble = assembler(self.store, JOB)

    def restart_daemon(self, node: int) -> None:
        """Another incarnation; it remembers nothing."""
        self._lives[node] += "x"
        self.bases[node] = None

    async def save(self, *allowed: int) -> Entry:
        """The next checkpoint, which may refer to these commits."""
        self.step += 10
        attempt, parts, layouts = Attempt(Snapshot(Generation(1, 1), self.step), 0), [], []
        for rank, (life, base) in enumerate(zip(self._lives, self.bases, strict=True)):
            slot = Slot(rank)
            for name, value in self.values.items():
                slot.tensor(name, "uint32", value, *region(value.shape, 0, rank, 2))
            slot.object("step", str(self.step).encode(), "rank")
            sources = [slot.source()]
            parts.append(
                await write_part(
                    *(self.store, JOB, attempt, life, sources, OPTIONS, self._pool, self._numbers),
                    base=base,
                    allowed=set(allowed),
                )
            )
            layouts.append(layout_of(sources))
        newest = restore_candidate(self.log.state)
        parent = None if newest is None else newest.n
        commits = self.log.state.commits
        made = await self._assemble(attempt, 2, parent, [part.encode() for part in parts], commits)
        seq = await self.committer.commit(attempt, made.manifest, tuple(made.uses), parent)
        self.bases = [remember(seq, layout, part) for layout, part in zip(layouts, parts, strict=True)]
        self.saved[seq] = {name: value.copy() for name, value in self.values.items()}
        return self.log.state.commits[seq]

    async def restored(self, n: int) -> None:
        """Raises CorruptError; else commit ``n`` has the very bytes that were saved."""
        checkpoint = await open_checkpoint(self.store, JOB, self.log.state.commits[n].manifest)
        wants = [Want(name, -1, "uint32", shape, (0,) * len(shape), shape) for name, shape in SHAPES.items()]
        got = await load(self.store, checkpoint, wants, self._pool, [4] * len(wants))
        assert got == [self.saved[n][name].tobytes() for name in SHAPES]
        step = self.log.state.commits[n].attempt.snapshot.step
        for rank in range(2):
            assert await checkpoint.read_objects(self.store, [rank]) == [{"step": str(step).encode()}]

    async def collect(self) -> None:
        await execute(self.store, self.log, await make_plan(self.store, JOB, self.log.state, 0.0, {}))


async def chain(root: Path, pool: ThreadPoolExecutor) -> Run:
    """Records 1 to 4: whole; only the adapter changed; the adapter and two rows of the embedding; only the adapter."""
    run = Run(root, pool)
    await run.start()
    for change in ((), (), (5, 40), ()):
        run.values["adapter"] += 1
        for row in change:
            run.values["embedding"][row] += 1
        await run.save(1, 2, 3)
    return run


async def test_a_chain_is_bit_exact_and_names_only_where_frames_lie(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    run = await chain(tmp_path, pool)
    assert [entry.bases for entry in run.log.state.commits.values()] == [(), (1,), (1,), (1, 3)]
    for n in run.saved:
        await run.restored(n)
    sizes = [(await open_checkpoint(run.store, JOB, e.manifest)).manifest.stored_bytes for e in run.log.state.commits.values()]
    assert max(sizes[1], sizes[3]) < 300 and sizes[2] < 300 + 2 * 256 < sizes[0] / 4
    assert Inspector(DirectoryObjects(tmp_path), JOB).look([], []) == []
    code, report = await asyncio.to_thread(verify, tmp_path, "--all", "--read-data")
    assert (code, found(report)) == (0, set()) and len({c["frames"] for c in report["checkpoints"]}) == 1


async def test_what_is_retired_stays_as_long_as_a_live_one_needs_it(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    run = await chain(tmp_path, pool)
    retention = Retention(1)
    while (n := next_to_retire(run.log.state, retention)) is not None:
        await run.committer.retire(n)
    assert [n for n, entry in run.log.state.commits.items() if entry.live] == [1, 3, 4]
    await run.committer.retire(1)
    await run.committer.quarantine(3, "test")
    plan = await make_plan(run.store, JOB, run.log.state, 0.0, {})
    assert {thing.seq: why for thing, why in plan.held} == {1: "record 4 refers to its data", 3: "record 4 refers to its data"}
    await run.collect()
    await run.restored(4)
    arguments = ["gc", "--store", str(tmp_path), "--job", JOB, "--dry-run"]
    done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert "kept: checkpoint of step 10, record 1: record 4 refers to its data" in done.stdout
    with pytest.raises(BaseGoneError, match="record 1, which is no live commit"):
        await run.save(1, 3, 4)
    run.values["adapter"] += 1
    last = await run.save(4)
    assert last.bases == ()  # what lay in 1 and 3 is written anew; of its own, record 4 had the adapter alone
    await run.committer.retire(4)
    await run.collect()
    await run.restored(last.n)
    kept = {path.name for path in (tmp_path / JOB / "data").iterdir() if any(path.iterdir())}
    assert kept == {"1-1.60.0", "1-1.50.0"}  # the void attempt was never aborted


async def test_a_pinned_one_keeps_its_bases(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    run = await chain(tmp_path, pool)
    await pin(run.log, 3, "me")
    run.values = {name: value + 1 for name, value in run.values.items()}
    last = await run.save(1, 2, 3, 4)
    assert last.bases == ()
    for n in (1, 2, 3, 4):
        await run.committer.retire(n)
    await run.collect()
    await run.restored(3)
    await run.restored(last.n)
    with pytest.raises(CorruptError, match="missing"):
        await run.restored(4)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
async def test_a_damaged_base_is_found_in_each_that_needs_it_and_in_no_other(
    tmp_path: Path, pool: ThreadPoolExecutor, damage: Callable[[Path], None]
) -> None:
    run = await chain(tmp_path, pool)
    run.values = {name: value + 1 for name, value in run.values.items()}
    await run.save(1, 2, 3, 4)
    users: dict[str, set[int]] = {}
    for n, entry in run.log.state.commits.items():
        checkpoint = await open_checkpoint(run.store, JOB, entry.manifest)
        for row in range(len(checkpoint.index.segments)):
            users.setdefault(checkpoint.segment_key(row), set()).add(n)
    assert {4, 3, 2, 1} in users.values() and {3, 4} in users.values() and {5} in users.values()
    for key, needing in users.items():
        whole = (tmp_path / key).read_bytes()
        damage(tmp_path / key)
        told = "\n".join(Inspector(DirectoryObjects(tmp_path), JOB).look([], []))
        for n, entry in run.log.state.commits.items():
            report = await verify_checkpoint(run.store, JOB, entry, 2, sample(1, random.Random(1)))
            # A whole segment is damaged in its middle: whoever needs other frames of it may not notice.
            assert {bad.key for bad in report.bad} <= ({key} if n in needing else set())
            assert report.bad or n not in needing or damage is flip
            if report.bad:
                assert f"commit {n}: {key}" in told
                if any("has " not in bad.problem for bad in report.bad):  # not only its size is wrong
                    with pytest.raises(CorruptError, match=key):
                        await run.restored(n)
                assert key in await confirmer(run.store, JOB)(entry, f"a frame is damaged segment={key}")
            else:
                await run.restored(n)
        assert f": {key}" in told
        (tmp_path / key).write_bytes(whole)


async def test_a_daemon_that_restarts_writes_its_share_anew_and_the_others_go_on(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    run = await chain(tmp_path, pool)
    run.restart_daemon(1)
    entry = await run.save(1, 2, 3, 4)
    assert entry.bases == (1, 3, 4)
    checkpoint = await open_checkpoint(run.store, JOB, entry.manifest)
    assert checkpoint.index.writers == ("n0.a", "n1.ax")  # nothing of what the other life wrote is needed any more
    await run.restored(5)
    entry = await run.save(1, 3, 4, 5)
    assert entry.bases == (1, 3, 4, 5)
    await run.restored(6)


def test_show_and_ls_say_what_lies_elsewhere(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        asyncio.run(chain(tmp_path, pool))
    place = ["--store", str(tmp_path), "--job", JOB]
    shown = CliRunner().invoke(app, ["show", *place, "40"], env={"COLUMNS": "200"}).stdout
    assert "unchanged since step 10, record 1" in shown and "unchanged since step 30, record 3" in shown
    listed = CliRunner().invoke(app, ["ls", *place], env={"COLUMNS": "200"}).stdout
    assert "a base of records 2, 3, 4" in listed and "a base of record 4" in listed


async def test_a_copy_of_one_attempt_alone_is_no_checkpoint(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Keys of bases come from the manifest's identities: another job's objects are never looked at."""
    run = await chain(tmp_path, pool)
    shutil.rmtree(tmp_path / JOB / "data" / "1-1.10.0")
    with pytest.raises(CorruptError, match=r"missing segment=job/data/1-1\.10\.0/n0\.a-0\.seg"):
        await run.restored(4)
