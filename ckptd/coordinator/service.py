"""The coordinator on the network: gRPC streams in and out of the engine (coordinator.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from ckptd.coordinator.convert import node_of
from ckptd.coordinator.engine import Engine
from ckptd.coordinator.events import Event
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.errors import CkptdError, ProtocolError, UnavailableError
from ckptd.rpc import PROTOCOL_VERSION
from ckptd.rpc.access import Guard
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc

Retire = Callable[[int], Awaitable[int]]
HELLO_SECONDS: Final = 10.0
MAX_MESSAGE_BYTES: Final = 64 << 20
MAX_FOLLOWERS: Final = 32
_log = structlog.get_logger(__name__)


class StreamLink:
    """A bounded queue of messages for one node. A node that does not read is cut off, so that it can't fill our memory."""

    def __init__(self, limit: int) -> None:
        self._queue: asyncio.Queue[pb.ToNode | None] = asyncio.Queue()
        self._limit = limit
        self._closed = False

    def send(self, message: pb.ToNode) -> bool:
        """Queue it; False when the link is closed or full (it is closed then)."""
        if self._closed or self._queue.qsize() >= self._limit:
            self.close()
            return False
        self._queue.put_nowait(message)
        return True

    def close(self) -> None:
        """End the stream once what was queued has gone out."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)

    async def next(self) -> pb.ToNode | None:
        """The next message; None at the end."""
        return await self._queue.get()


class CoordinatorService(rpc.CoordinatorServicer):
    """The servicer of one job. ``genesis`` is the hash of log record 0; ``retire`` retires a commit: Committer.retire."""

    def __init__(self, job: str, engine: Engine, options: CoordinatorOptions, genesis: bytes, retire: Retire) -> None:
        self._job = job
        self._engine = engine
        self._options = options
        self._genesis = genesis
        self._followers = 0
        self._retire = retire

    async def Ping(self, request: pb.PingRequest, context: Any) -> pb.PingReply:  # noqa: N802 (gRPC's name)
        """Who is there?"""
        return pb.PingReply(job=self._job, epoch=self._engine.state.epoch)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802 (gRPC's name)
        """How is the job?"""
        await self._check_job(request.job, context)
        return self._engine.status(self._job)

    async def Events(self, request: pb.EventsRequest, context: Any) -> AsyncIterator[pb.Event]:  # noqa: N802 (gRPC's name)
        """What has happened, and with ``follow`` what happens."""
        await self._check_job(request.job, context)
        events = self._engine.events
        if not request.follow:
            found, missed = events.since(request.epoch, request.after)
            for event in found:
                yield _event(event, missed)
                missed = 0
            return
        if self._followers >= MAX_FOLLOWERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_FOLLOWERS} others follow the events already")
        self._followers += 1
        try:
            async for event, missed in events.follow(request.epoch, request.after):
                yield _event(event, missed)
        finally:
            self._followers -= 1

    async def _check_job(self, job: str, context: Any) -> None:
        if job != self._job:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"this is the coordinator of job {self._job!r}, not of {job[:80]!r}")

    async def Retire(self, request: pb.RetireRequest, context: Any) -> pb.RetireReply:  # noqa: N802 (gRPC's name)
        """A user wants a commit to go. Answers when the record is in the log."""
        await self._check_job(request.job, context)
        try:
            return pb.RetireReply(record=await self._retire(request.seq))
        except UnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except CkptdError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise AssertionError("abort() raises")

    async def Attach(  # noqa: N802 (gRPC's name)
        self, request_iterator: AsyncIterator[pb.FromNode], context: Any
    ) -> AsyncIterator[pb.ToNode]:
        """One node's stream: the first message is Hello, the answer Welcome or Refused."""
        link = StreamLink(self._options.queue_messages)
        try:
            hello = await asyncio.wait_for(anext(aiter(request_iterator)), HELLO_SECONDS)
            node = self._admit(hello)
        except (TimeoutError, StopAsyncIteration):
            return
        except RefusedError as refusal:
            _log.warning("node refused", code=refusal.code, message=str(refusal))
            yield pb.ToNode(refused=pb.Refused(code=refusal.code, message=str(refusal)))
            return
        link.send(self._welcome())
        self._engine.attach(node, hello.hello.incarnation, link)
        reader = asyncio.create_task(self._read(node, link, request_iterator))
        try:
            while (message := await link.next()) is not None:
                yield message
        finally:
            reader.cancel()
            self._engine.detach(node, link)

    def _admit(self, message: pb.FromNode) -> str:
        hello = message.hello
        if message.WhichOneof("body") != "hello":
            raise RefusedError("protocol", "the first message must be Hello")
        if hello.protocol != PROTOCOL_VERSION:
            raise RefusedError(
                "version",
                f"the coordinator speaks protocol {PROTOCOL_VERSION}, the daemon {hello.protocol}; the"
                f" {'daemon' if hello.protocol < PROTOCOL_VERSION else 'coordinator'} is older: upgrade ckptd there",
            )
        if hello.job != self._job:
            raise RefusedError("job", f"this is the coordinator of job {self._job!r}, not of {hello.job[:80]!r}")
        try:
            node_of(hello.incarnation)
            return node_of(hello.node)
        except ProtocolError as error:
            raise RefusedError("protocol", str(error)) from None

    def _welcome(self) -> pb.ToNode:
        options = self._options
        return pb.ToNode(
            welcome=pb.Welcome(
                epoch=self._engine.state.epoch,
                heartbeat_seconds=options.heartbeat_seconds,
                lease_seconds=options.lease_seconds,
                genesis=self._genesis,
            )
        )

    async def _read(self, node: str, link: StreamLink, messages: AsyncIterator[pb.FromNode]) -> None:
        try:
            async for message in messages:
                self._engine.receive(node, link, message)
        except ProtocolError as error:
            _log.warning("node refused", node=node, code="protocol", message=str(error))
            link.send(pb.ToNode(refused=pb.Refused(code="protocol", message=str(error))))
        except grpc.RpcError as error:
            _log.debug("stream broke", node=node, error=str(error))
        finally:
            link.close()


def _event(event: Event, missed: int) -> pb.Event:
    return pb.Event(
        epoch=event.epoch, number=event.number, unix_seconds=event.at, kind=event.kind, text=event.text, missed=missed
    )


class RefusedError(Exception):
    """Why a stream is not accepted; ``code`` is "version", "job" or "protocol"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def serve(service: CoordinatorService, bind: str, guard: Guard) -> tuple[grpc.aio.Server, int]:
    """Start serving on ``bind`` (host:port, port 0: any free one); the server and its port. Raises OSError when it is taken."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Daemons ping every 10 s to notice a host that vanished; gRPC's default takes that for an attack.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # two coordinators on one port would each get half of the daemons
    ]
    server = grpc.aio.server(interceptors=guard.interceptors(), options=options)
    rpc.add_CoordinatorServicer_to_server(service, server)
    port = guard.listen(server, bind)
    await server.start()
    return server, port
