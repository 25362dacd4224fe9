"""The stream to one job's coordinator: found, kept, and made anew whenever it breaks.

Nothing is queued while it is down; after each connect all facts are said again (ranks.py says why).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import grpc
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ckptd.commit.leader import read_hint
from ckptd.daemon.node import Node
from ckptd.errors import CkptdError, ConfigError, NotFoundError, UnavailableError
from ckptd.model.canonical import digest
from ckptd.model.keys import log_key
from ckptd.model.records import MAX_RECORD_BYTES
from ckptd.rpc import PROTOCOL_VERSION
from ckptd.rpc.access import Access
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1.coordinator_pb2_grpc import CoordinatorStub
from ckptd.store.base import get_small

_log = structlog.get_logger(__name__)
TOPIC = "coordinator"
_REFUSALS = 4  # within about a second
_QUEUE = 4096
_MESSAGE_BYTES = 64 << 20
_BACKOFF_SECONDS = 1.0  # well below a lease: after its own restart a coordinator waits for its members just so long
_GOODBYE_SECONDS = 1.0
_CHANNEL = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A coordinator whose host vanished without a word: noticed by unanswered pings, not by TCP's patience of many minutes.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class Link:
    """Runs until closed. `send` drops what it can't send: the next connect repeats what still holds."""

    def __init__(
        self,
        job: str,
        node: Node,
        facts: Callable[[], Iterator[pb.FromNode]],
        heartbeat: Callable[[], pb.FromNode],
        handle: Callable[[pb.ToNode], Awaitable[None]],
        refused: Callable[[str], None],
        over: Callable[[], bool],
    ) -> None:
        """``refused`` is told why a coordinator that answers and this daemon can't work together; "" once they can.

        While ``over()`` no coordinator is missed.
        """
        self._job = job
        self._node = node
        self._facts = facts
        self._heartbeat = heartbeat
        self._handle = handle
        self._queue: asyncio.Queue[pb.FromNode | None] | None = None
        self._refused = refused
        self._over = over
        self._closing = False
        self.address = ""
        self.accepted = False  # some coordinator has accepted this daemon, and it that one

    @property
    def connected(self) -> bool:
        """Whether a coordinator is listening."""
        return self._queue is not None

    def send(self, message: pb.FromNode) -> None:
        """Send now, or never."""
        if self._queue is None:
            return
        self._queue.put_nowait(message)
        if self._queue.qsize() > _QUEUE:
            self._end_stream()  # too slow to be of use; the next stream begins with the facts

    async def close(self, running: asyncio.Task[None], goodbye: bool) -> None:
        """End the stream, if it is up, and the task that runs it. Without ``goodbye`` another daemon is awaited here."""
        self._closing = True
        if self._queue is not None:
            if goodbye:
                self.send(pb.FromNode(goodbye=pb.Goodbye(reason="the daemon was told to stop")))
            self._end_stream()
            await asyncio.wait([running], timeout=_GOODBYE_SECONDS)
        running.cancel()
        await asyncio.wait([running])

    def _end_stream(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.put_nowait(None)

    async def run(self) -> None:
        """Keep a stream to whoever is the coordinator now."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((CkptdError, grpc.RpcError, OSError)),
            wait=wait_random_exponential(multiplier=0.1, max=_BACKOFF_SECONDS),
            before_sleep=self._say,
        )
        while not self._closing:
            await retrying(self._connect_once)

    def _say(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome is not None else None
        unknown = isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.UNAUTHENTICATED
        text = str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
        if attempt.attempt_number < 2:
            return  # a coordinator's restart may be just that quick
        final = isinstance(error, ConfigError) or unknown
        # Several times, for the address may be one that a dead coordinator announced, and another job's by now.
        self._refused(text if final and attempt.attempt_number >= _REFUSALS else "")
        if not self._over():
            self._node.troubles.begin(TOPIC, f"training goes on, commits wait: {text}", self._job)

    async def _connect_once(self) -> None:
        """One stream's life. Returns when it is over after it was up; raises when it never came up."""
        settings = self._node.settings.daemon
        hint = None if settings.coordinator else await read_hint(self._node.store, self._job)
        address = settings.coordinator or (hint.address if hint is not None else None)
        if address is None:
            raise UnavailableError(f"no coordinator has announced itself; start `ckptd coordinator --job {self._job}`")
        async with self._node.access.to(address, _CHANNEL) as (channel, stub):
            async with asyncio.timeout(settings.connect_seconds):
                await _ready(channel, address, self._node.access)
            await self._converse(stub, address)

    async def _converse(self, stub: CoordinatorStub, address: str) -> None:
        queue: asyncio.Queue[pb.FromNode | None] = asyncio.Queue()  # bounded by `send`
        queue.put_nowait(
            pb.FromNode(
                hello=pb.NodeHello(
                    protocol=PROTOCOL_VERSION, job=self._job, node=self._node.name, incarnation=self._node.incarnation
                )
            )
        )
        stream = stub.Attach(self._outgoing(queue))
        beating: asyncio.Task[None] | None = None
        try:
            async for message in stream:
                kind = message.WhichOneof("body")
                if kind == "welcome":
                    await self._check_store(message.welcome)
                    _log.info("coordinator", job=self._job, address=address, epoch=message.welcome.epoch)
                    self.address, self.accepted = address, True
                    self._refused("")
                    self._node.troubles.end(TOPIC, self._job)
                    for fact in self._facts():
                        queue.put_nowait(fact)
                    self._queue = queue
                    beating = asyncio.create_task(self._beat(queue, message.welcome.heartbeat_seconds))
                elif kind == "refused":
                    text = f"the coordinator at {address} refuses this daemon: {message.refused.message}"
                    stale = message.refused.code == "job" and not self._node.settings.daemon.coordinator
                    raise UnavailableError(text) if stale else ConfigError(text)
                else:
                    await self._handle(message)
        finally:
            self._queue = None
            if beating is not None:
                beating.cancel()
            stream.cancel()

    async def _outgoing(self, queue: asyncio.Queue[pb.FromNode | None]) -> AsyncIterator[pb.FromNode]:
        while (message := await queue.get()) is not None:
            yield message

    async def _beat(self, queue: asyncio.Queue[pb.FromNode | None], seconds: float) -> None:
        while self._queue is queue:
            self.send(self._heartbeat())
            await asyncio.sleep(seconds)

    async def _check_store(self, welcome: pb.Welcome) -> None:
        """Both must look at the same log, or nothing that this daemon uploads would ever be found."""
        try:
            mine = digest(await get_small(self._node.store, log_key(self._job, 0), MAX_RECORD_BYTES))
        except NotFoundError:
            mine = ""
        if mine != welcome.genesis.decode("ascii", "replace"):
            raise ConfigError(
                f"daemon and coordinator look at different stores (or the first log record is gone); give both the same --store"
                f" store={self._node.store.url} job={self._job}"
            )


async def _ready(channel: grpc.aio.Channel, address: str, access: Access) -> None:
    """Wait until the channel is up. Raises UnavailableError at its first failure.

    `channel_ready` would go on to dial an address that nobody listens on, while the next coordinator announces another one.
    """
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            over = "over TLS, with a certificate for this address from tls_ca_file" if access.authorities else "without TLS"
            raise UnavailableError(f"no coordinator answers at {address} {over}")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
