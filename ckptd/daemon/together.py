"""One restore of all ranks of this node: what they want is fetched once, into one ring, and each copies its part out of it.

The first rank that asks waits for the others, which restore the same checkpoint and are not done before it is. Then their wants
are planned as one; a frame goes to every rank that needs some of it, and its buffer is free when all of them have copied.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog

from ckptd.clock import SYSTEM_CLOCK
from ckptd.daemon.arenas import RingMemory
from ckptd.daemon.node import Node
from ckptd.daemon.peer import Peer
from ckptd.model.region import Ints
from ckptd.restore.checkpoint import Checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import FrameRead, plan
from ckptd.restore.source import CountedStore
from ckptd.restore.turns import by_rank, by_turns
from ckptd_client.arena import PAGE
from ckptd_client.messages.restoring import Filled, RestoreEnd, RestoreFrames, RestoreRing, Want

_log = structlog.get_logger(__name__)
GATHER_SECONDS: Final = 60.0
"""How long the ranks of a node wait for those that have not asked yet. Who comes later has its part fetched by itself."""


WINDOW_BYTES: Final = 64 << 10
"""Of messages to one rank that it has not answered: a socket holds some 200 KB. One alone may be longer."""


CACHED_BYTES: Final = 32 << 20
"""Of frames that are being decoded or copied: so much stays in a processor's cache from one to the other (decisions/0026)."""
STANDING_SECONDS: Final = 1.0
"""Without a copy for so long, trainers stand still: what has come is then decoded all the same, so that it holds no budget."""


class Share:
    """One rank's part: what it wants, and the ring whose buffers its credits mean."""

    def __init__(self, rank: int, wants: Sequence[Want], peer: Peer, request: int) -> None:
        self.rank = rank
        self.wants = wants
        self.peer = peer
        self.request = request
        self.ring: Ring | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: deque[Filled] = deque()  # no more than the ring has buffers
        self._unread: dict[int, int] = {}  # bytes of messages that were sent and not answered, by buffer
        self._sent_all = asyncio.Event()
        self._sent_all.set()

    def hand_over(self, frame: Filled) -> None:
        """Send it, together with others of the same range, as soon as the socket has room: a full one would hold up everybody,
        and soon end the connection.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send_on)
        self._waiting.append(frame)
        self._sent_all.clear()

    @property
    def waiting(self) -> int:
        """How many frames lie ready for it."""
        return len(self._waiting)

    async def all_sent(self) -> None:
        """Return when every frame has been sent."""
        await self._sent_all.wait()

    def credit(self, buffers: Sequence[int]) -> None:
        """The trainer has copied what it needs out of these buffers."""
        for buffer in buffers:
            self._unread.pop(buffer, None)
            if self.ring is not None:
                self.ring.credit(self, buffer)
        self._send_on()

    def leave(self) -> None:
        """It is sent nothing any more, and reads nothing."""
        self._waiting.clear()
        self._sent_all.set()
        if self.ring is not None:
            self.ring.leave(self)

    def _send_on(self) -> None:
        room, now = WINDOW_BYTES - sum(self._unread.values()), list[Filled]()
        while self._waiting and (not self._unread or len(self._waiting[0].copies) <= room):
            frame = self._waiting.popleft()
            self._unread[frame.buffer] = len(frame.copies)
            room -= len(frame.copies)
            now.append(frame)
        if now:
            self.peer.send(RestoreFrames(now))
        if not self._waiting:
            self._sent_all.set()


class Ring:
    """Frame buffers that go round between daemon and trainers; a buffer that one of them may still read is not written."""

    def __init__(self, memory: RingMemory, buffers: int, cached: int, standing_seconds: float = STANDING_SECONDS) -> None:
        """``cached``: how many buffers there should be between decoding and copying."""
        self.count = buffers
        self._cached = cached
        self._standing_seconds = standing_seconds
        self._used = 0  # by those whose turn has come, until they are free again
        self._eased = asyncio.Event()
        self._line = asyncio.Lock()
        self._standing = False
        self._memory = memory
        self._unmade = itertools.count()
        self._readers: dict[int, set[Share]] = {}
        self._places = asyncio.Semaphore(buffers)
        self._free: list[int] = []  # what was used last, and is still in the processor's cache, is taken first

    async def reserve(self) -> None:
        """Wait until one of them will be free when it is needed."""
        await self._places.acquire()

    async def turn(self, frames: int) -> None:
        """Wait, in the order of the calls, while trainers have much to copy: until they have, or stand still."""
        async with self._line:
            try:
                while self._used and self._used + frames > self._cached and not self._standing:
                    self._eased.clear()
                    async with asyncio.timeout(self._standing_seconds):
                        await self._eased.wait()
            except TimeoutError:
                self._standing = True
            self._used += frames

    def acquire(self) -> tuple[int, memoryview]:
        """A reserved buffer; called in threads. Raises ResourceError when there is no memory for another one."""
        try:
            index = self._free.pop()
        except IndexError:
            index = next(self._unmade)
            self._memory.allocate(index)
        return index, self._memory.buffer(index)

    def lend(self, index: int, readers: set[Share]) -> None:
        """A full buffer is theirs until each has given it back."""
        self._readers[index] = readers
        self._tidy(index)

    def credit(self, reader: Share, index: int) -> None:
        """One of them needs it no more. A buffer that it doesn't have is nothing to give back."""
        if reader in self._readers.get(index, ()):
            self._readers[index].remove(reader)
            self._tidy(index)

    def leave(self, reader: Share) -> None:
        """It reads nothing any more."""
        for index in list(self._readers):
            self.credit(reader, index)

    def _tidy(self, index: int) -> None:
        if not self._readers[index]:
            del self._readers[index]
            self._free.append(index)
            self._places.release()
            self._used, self._standing = self._used - 1, False
            self._eased.set()


class Together:
    """The ranks that take part in one restore.

    ``awaited`` says which ranks have yet to ask; ``begun`` is called when it begins, or ends before: nobody can join any more.
    """

    def __init__(
        self,
        node: Node,
        checkpoint: Checkpoint,
        awaited: Callable[[], set[int]],
        begun: Callable[[Together], None],
        patience_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._node = node
        self._checkpoint = checkpoint
        self._awaited = awaited
        self._begun = begun
        self._patience_seconds = patience_seconds
        self.shares: list[Share] = []  # of those that are still there
        self._changed = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    async def deliver(self, share: Share) -> None:
        """Return when the rank has been sent all that it wants. Raises what planning and fetching raise.

        Cancelling takes this rank out; the others go on.
        """
        self.shares.append(share)
        self.look()
        try:
            await share.over
        finally:
            self.shares = [other for other in self.shares if other is not share]
            share.leave()
            self.look()
            if not self.shares and not self._running.done():
                self._running.cancel()
                self._begun(self)

    def look(self) -> None:
        """Somebody has asked, or won't."""
        self._changed.set()

    async def _run(self) -> None:
        try:
            await self._gathered()
            self._begun(self)
            shares = list(self.shares)
            await self._fetch(shares)
        except Exception as error:  # the ranks' tasks know what to do with each kind
            for share in self.shares:
                if not share.over.done():
                    share.over.set_exception(error)
            return
        for share in shares:
            if not share.over.done():
                share.over.set_result(None)

    async def _gathered(self) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                while self._awaited() - {share.rank for share in self.shares}:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def _fetch(self, shares: Sequence[Share]) -> None:
        node, checkpoint = self._node, self._checkpoint
        wants = [want for share in shares for want in share.wants]
        firsts = np.cumsum([0, *(len(share.wants) for share in shares)], dtype=np.int64)[:-1]
        reads = await asyncio.to_thread(_planned, checkpoint, wants, firsts)
        size = max([node.settings.daemon.frame_bytes, *(read.raw_bytes for read in reads)])
        size = -(-size // PAGE) * PAGE
        buffers = max(1, min(len(reads), node.settings.arena.ring_bytes // size))
        async with node.arenas.ring(buffers, size) as memory:
            ring = Ring(memory, buffers, CACHED_BYTES // size)
            for share in shares:
                share.ring = ring
                share.peer.send(RestoreRing(buffers, size), (memory.fd,))

            def hand_over(buffer: int, copies: Ints) -> None:
                parts = [(shares[number], mine) for number, mine in by_rank(copies, firsts) if shares[number] in self.shares]
                ring.lend(buffer, {share for share, _ in parts})
                for share, mine in parts:
                    share.hand_over(Filled(buffer, mine.tobytes()))

            store, begun = CountedStore(node.read_store), SYSTEM_CLOCK.monotonic()
            await fetch(store, checkpoint, reads, ring, hand_over, node.pool, node.fetch_budget)
            for share in shares:
                await share.all_sent()
            for share in shares:
                share.peer.send(RestoreEnd(share.request))  # it need not wait for the ring's end
        _log.info(
            "fetched",
            job=checkpoint.manifest.job,
            step=checkpoint.manifest.step,
            ranks=[share.rank for share in shares],
            frames=len(reads),
            bytes=store.read_bytes,
            requests=store.reads,
            seconds=round(SYSTEM_CLOCK.monotonic() - begun, 3),
        )


def _planned(checkpoint: Checkpoint, wants: Sequence[Want], firsts: Ints) -> list[FrameRead]:
    return by_turns(plan(checkpoint.layout, checkpoint.index, wants), firsts)
