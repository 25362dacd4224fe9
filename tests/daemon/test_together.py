"""What several ranks of a node want is fetched once: over real sockets, a real ring and a real store."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from ckptd.config import load_settings
from ckptd.daemon.arenas import ArenaHost
from ckptd.daemon.metrics import DaemonMetrics
from ckptd.daemon.node import Node, Watch
from ckptd.daemon.peer import Peer
from ckptd.daemon.together import Ring, Share, Together
from ckptd.errors import MissingStateError
from ckptd.notify import Notifier
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.meter import Meter
from ckptd.pipeline.write import WriteOptions
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.plan import plan
from ckptd.rpc.access import Access
from ckptd.troubles import Troubles
from ckptd_client.errors import DaemonUnavailableError
from ckptd_client.messages.coding import Message
from ckptd_client.messages.restoring import RestoreCredit, RestoreEnd, RestoreFrames, RestoreRing, Want
from ckptd_client.wire import Connection
from tests.restore.states import JOB, CountingStore, Slot, region, save
from tests.waiting import eventually

SHAPE = (600, 600)
WHOLE = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
FRAME = 16 << 10


class Rank:
    """A trainer: copies what its frames say, and gives the buffers back, unless ``holds`` says after how many it stops to."""

    def __init__(self, number: int, want: Want, holds: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(theirs)
        self.peer = Peer(Connection(ours), os.pidfd_open(os.getpid()))
        self.share = Share(number, [want], self.peer, 7)
        self.memory = bytearray(want.sizes[0] * want.sizes[1] * 4)
        self.frames = 0
        self.ended = False
        self.awake = threading.Event()
        self.awake.set()
        self._holds = holds
        self._thread = threading.Thread(target=self._copy, daemon=True)

    async def run(self, together: Together) -> None:
        self.peer.start()
        self._thread.start()
        credits = asyncio.create_task(self._credits())
        try:
            await together.deliver(self.share)
            await asyncio.to_thread(self._thread.join)
        finally:
            self.peer.close()
            await credits
            await asyncio.to_thread(self._thread.join)
            self.connection.close()

    async def _credits(self) -> None:
        while (message := await self.peer.next()) is not None:
            assert isinstance(message, RestoreCredit)
            self.share.credit(message.buffers)

    def _copy(self) -> None:
        ring, size = memoryview(b""), 0
        try:
            while not self.ended:
                self.awake.wait()
                message, fds = self.connection.receive()
                if isinstance(message, RestoreRing):
                    ring, size = memoryview(mmap.mmap(fds[0], message.buffers * message.buffer_bytes)), message.buffer_bytes
                    os.close(fds[0])
                elif isinstance(message, RestoreFrames):
                    for frame in message.filled:
                        self.frames += 1
                        if self._holds is not None and self.frames > self._holds:
                            continue
                        for copy in frame.unpacked():
                            start = frame.buffer * size + copy.frame_offset
                            self.memory[copy.want_offset : copy.want_offset + copy.nbytes] = ring[start : start + copy.nbytes]
                        self.connection.send(RestoreCredit([frame.buffer]))
                else:
                    assert message == RestoreEnd(7)
                    self.ended = True
        except DaemonUnavailableError:
            pass


@asynccontextmanager
async def saved(directory: Path, frame_bytes: int = 4 << 20) -> AsyncIterator[tuple[Node, CountingStore, Checkpoint]]:
    """A checkpoint of one tensor, row shards of four ranks, and a node whose ring has two buffers, or more smaller ones."""
    store = CountingStore(directory / "store")
    settings = load_settings(None, {"arena": {"ring_bytes": 8 << 20}, "daemon": {"frame_bytes": frame_bytes}})
    with ThreadPoolExecutor(2) as pool:
        slots = [Slot(rank) for rank in range(4)]
        for slot in slots:
            slot.tensor("w", "float32", WHOLE, *region(SHAPE, 0, slot.rank, 4))
        options = WriteOptions(frame_bytes=FRAME, segment_bytes=8 * FRAME, codec="planes")
        _, manifest = await save(store, [[slot.source()] for slot in slots], options, pool)
        checkpoint = await open_checkpoint(store, JOB, manifest)
        store.gets.clear()
        node = Node(
            name="a",
            incarnation="0",
            settings=settings,
            store=store,
            upload_store=store,
            read_store=store,
            arenas=ArenaHost(directory / "arena", 1 << 30, Notifier(None)),
            pool=pool,
            fetch_budget=ByteBudget(1 << 20),
            segment_numbers=itertools.count(),
            write_options=options,
            meter=Meter(2, 2),
            access=Access(None, None),
            watch=Watch(),
            troubles=Troubles(),
            started=time.monotonic(),
            metrics=DaemonMetrics(),
        )
        yield node, store, checkpoint


def want(dim: int, rank: int, world: int) -> Want:
    return Want("w", -1, "float32", SHAPE, *region(SHAPE, dim, rank, world))


def right(rank: Rank) -> bool:
    [one] = rank.share.wants
    cut = WHOLE[tuple(slice(o, o + s) for o, s in zip(one.offsets, one.sizes, strict=True))]
    return bytes(rank.memory) == np.ascontiguousarray(cut).tobytes()


def together(node: Node, checkpoint: Checkpoint, awaited: set[int], patience_seconds: float = 60.0) -> Together:
    return Together(node, checkpoint, lambda: awaited, lambda _: None, patience_seconds)


@pytest.mark.parametrize("dim", [0, 1])
async def test_each_frame_once_for_all_ranks_whenever_they_ask(tmp_path: Path, dim: int) -> None:
    async with saved(tmp_path) as (node, store, checkpoint):
        ranks = [Rank(number, want(dim, number, 3)) for number in range(3)]
        restore = together(node, checkpoint, {0, 1, 2})
        first = [asyncio.create_task(rank.run(restore)) for rank in ranks[:2]]
        await eventually(lambda: len(restore.shares) == 2, "two asked")
        assert store.gets == []
        await asyncio.gather(*first, ranks[2].run(restore))
        assert all(map(right, ranks)) and all(rank.ended for rank in ranks)
        needed = plan(checkpoint.layout, checkpoint.index, [one for rank in ranks for one in rank.share.wants])
        assert store.read_bytes(".seg") == sum(read.stored_bytes for read in needed)
        alone = [plan(checkpoint.layout, checkpoint.index, rank.share.wants) for rank in ranks]
        assert [rank.frames for rank in ranks] == [len(reads) for reads in alone]
        if dim == 1:  # every rank needs every frame, which each of them would have fetched
            assert sum(map(len, alone)) == 3 * len(needed)
        assert node.arenas.used_bytes == 0


async def test_a_rank_that_will_not_ask_is_not_waited_for(tmp_path: Path) -> None:
    async with saved(tmp_path) as (node, _, checkpoint):
        awaited, rank = {0, 1}, Rank(0, want(1, 0, 2))
        restore = together(node, checkpoint, awaited)
        running = asyncio.create_task(rank.run(restore))
        awaited.remove(1)
        restore.look()
        await running
        assert right(rank)


async def test_a_rank_that_asks_late_is_not_waited_for_longer_than_that(tmp_path: Path) -> None:
    async with saved(tmp_path) as (node, _, checkpoint):
        begun: list[Together] = []
        rank = Rank(0, want(1, 0, 2))
        restore = Together(node, checkpoint, lambda: {0, 1}, begun.append, 0.05)
        await rank.run(restore)
        assert right(rank) and begun == [restore]


async def test_a_rank_that_leaves_holds_nobody_up(tmp_path: Path) -> None:
    """It has all of the ring's buffers when it goes."""
    async with saved(tmp_path) as (node, _, checkpoint):
        stays, goes = Rank(0, want(1, 0, 2)), Rank(1, want(1, 1, 2), holds=2)
        restore = together(node, checkpoint, {0, 1})
        staying, going = asyncio.create_task(stays.run(restore)), asyncio.create_task(goes.run(restore))
        await eventually(lambda: goes.frames == 4, "two frames that it does not give back")
        assert not stays.ended and not goes.ended
        going.cancel()
        await staying
        assert right(stays)
        with pytest.raises(asyncio.CancelledError):
            await going
        assert node.arenas.used_bytes == 0


async def test_all_ranks_leave(tmp_path: Path) -> None:
    async with saved(tmp_path) as (node, store, checkpoint):
        rank = Rank(0, want(1, 0, 2), holds=1)
        begun: list[Together] = []
        restore = Together(node, checkpoint, lambda: {0, 1}, begun.append)
        running = asyncio.create_task(rank.run(restore))
        await eventually(lambda: len(restore.shares) == 1, "it asked")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert store.gets == []
        await eventually(lambda: bool(begun), "nobody can join any more")


@pytest.mark.parametrize("how", [lambda w: Want("x", *_rest(w)), lambda w: Want("w", -1, "float64", *_rest(w)[2:])])
async def test_what_is_not_there_is_said_to_every_rank(tmp_path: Path, how: Callable[[Want], Want]) -> None:
    async with saved(tmp_path) as (node, store, checkpoint):
        ranks = [Rank(0, want(1, 0, 2)), Rank(1, how(want(1, 1, 2)))]
        restore = together(node, checkpoint, {0, 1})
        said = await asyncio.gather(*(rank.run(restore) for rank in ranks), return_exceptions=True)
        assert [type(error) for error in said] == [MissingStateError, MissingStateError]
        assert store.gets == []


async def test_what_a_rank_has_not_answered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is full would block the daemon, and end the connection of a rank that only gets no CPU."""
    monkeypatch.setattr("ckptd.daemon.together.WINDOW_BYTES", 1000)
    sent: list[int] = []
    async with saved(tmp_path, frame_bytes=FRAME) as (node, _, checkpoint):
        rank = Rank(0, want(1, 0, SHAPE[1]))  # one column: a frame has a copy for each row
        rank.awake.clear()
        running = asyncio.create_task(rank.run(together(node, checkpoint, {0})))
        send = rank.peer.send

        def noted(message: Message, fds: tuple[int, ...] = ()) -> bool:
            sent.extend(len(frame.copies) for frame in message.filled) if isinstance(message, RestoreFrames) else None
            return send(message, fds)

        monkeypatch.setattr(rank.peer, "send", noted)
        await eventually(lambda: rank.share.waiting > 60, "frames wait for an answer")
        assert 0 < sum(sent) <= 1000
        rank.awake.set()
        await running
        assert right(rank) and rank.ended and sum(sent) > 10 * 1000


def _rest(one: Want) -> tuple[object, ...]:
    return one.rank, one.dtype, one.shape, one.offsets, one.sizes


async def test_a_ring_uses_no_more_memory_than_lies_in_it(tmp_path: Path) -> None:
    """What is on its way has a place, not yet a buffer; and what was given back last is used next."""
    host = ArenaHost(tmp_path / "arena", 1 << 30, Notifier(None))
    ours, theirs = socket.socketpair()
    share = Share(0, [], Peer(Connection(ours), os.pidfd_open(os.getpid())), 7)
    async with host.ring(3, 1 << 20) as memory:
        ring = share.ring = Ring(memory, 3, 3)
        for _ in range(3):
            await ring.reserve()
        assert os.fstat(memory.fd).st_blocks == 0
        taken = [ring.acquire()[0] for _ in range(2)]
        for index in taken:
            ring.lend(index, {share})
        fourth = asyncio.create_task(ring.reserve())
        await asyncio.sleep(0)
        assert not fourth.done()
        share.credit(taken)
        await fourth
        assert [ring.acquire()[0] for _ in range(2)] == taken[::-1]
        assert os.fstat(memory.fd).st_blocks * 512 == 2 << 20
    share.peer.close()
    theirs.close()
    host.close(remove=True)


async def test_no_more_is_decoded_than_trainers_copy_unless_they_stand_still(tmp_path: Path) -> None:
    host = ArenaHost(tmp_path / "arena", 1 << 30, Notifier(None))
    ours, theirs = socket.socketpair()
    share = Share(0, [], Peer(Connection(ours), os.pidfd_open(os.getpid())), 7)

    async def decoded(ring: Ring, frames: int) -> list[int]:
        await ring.turn(frames)
        taken = [ring.acquire()[0] for _ in range(frames)]
        for index in taken:
            ring.lend(index, {share})
        return taken

    async with host.ring(9, 4096) as memory:
        ring = share.ring = Ring(memory, 9, 4, standing_seconds=3600)
        first = await decoded(ring, 3)
        second = asyncio.create_task(decoded(ring, 2))
        third = asyncio.create_task(decoded(ring, 1))  # it would fit, but is not its turn
        share.credit([])
        await asyncio.sleep(0)
        assert not second.done() and not third.done()
        share.credit(first[:1])
        assert await second == [0, 3]
        share.credit(first[1:])
        assert await third == [2]
    async with host.ring(9, 4096) as memory:
        ring = share.ring = Ring(memory, 9, 4, standing_seconds=0.01)
        assert [await decoded(ring, 3) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        share.credit([0])
        assert await asyncio.wait_for(decoded(ring, 1), 60) == [0]
    async with host.ring(2, 4096) as memory:
        ring = share.ring = Ring(memory, 2, 0, standing_seconds=3600)  # one at a time, whatever its size
        assert await decoded(ring, 2) == [0, 1]
    share.peer.close()
    theirs.close()
    host.close(remove=True)
