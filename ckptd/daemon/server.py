"""The daemon's unix socket: who may connect, and what each connection becomes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from pathlib import Path

import structlog

from ckptd.daemon.arenas import HostedArena
from ckptd.daemon.job import Job
from ckptd.daemon.node import Node
from ckptd.daemon.peer import Peer
from ckptd.daemon.readings import Readings
from ckptd.daemon.report import daemon_status
from ckptd.daemon.tenants import Deed, read_deed
from ckptd.errors import CkptdError, ConfigError, ProtocolError, VersionMismatchError
from ckptd.model.ids import check_job
from ckptd.troubles import Trouble
from ckptd_client.errors import DaemonUnavailableError
from ckptd_client.messages.hello import (
    PROTOCOL_VERSION,
    ROLES,
    WORLD_MAX,
    Hello,
    Refused,
    StatusAsk,
    StatusInfo,
    Welcome,
    different_versions,
)
from ckptd_client.wire import Connection, dial

_log = structlog.get_logger(__name__)
_CONNECTIONS = 1024
_HELLO_SECONDS = 10.0
_SEND_SECONDS = 1  # a peer that leaves its socket full for so long is cut off; it blocks the event loop meanwhile
_DESERTED_SECONDS = 60.0
_MEASURE_SECONDS = 1.0
_UCRED = struct.Struct("3i")


def listen(path: Path) -> socket.socket:
    """Bind the socket with mode 0600 in a directory of mode 0700. Raises ConfigError when another daemon answers there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"can't make the directory of the daemon's socket; name another in CKPTD_SOCKET socket={path} error={error}"
        ) from error
    if path.exists():
        try:
            dial(path, 1.0).close()
        except CkptdError:
            path.unlink(missing_ok=True)  # of a daemon that is dead
        else:
            raise ConfigError(
                f"a ckptd daemon is already running here; use it, or name another socket in CKPTD_SOCKET socket={path}"
            )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"can't listen on the daemon's socket; name another in CKPTD_SOCKET socket={path} error={error}"
        ) from error
    finally:
        os.umask(mask)
    sock.listen(128)
    return sock


class Server:
    """Accepts trainers and agents of this user, and hands them to their jobs."""

    def __init__(self, node: Node, sock: socket.socket) -> None:
        self._node = node
        self._sock = sock
        self._jobs: dict[str, Job] = {}
        self._readings = Readings(node)
        self._conversations: set[asyncio.Task[None]] = set()
        node.troubles.heard = self._notice

    async def serve(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._sock)
            if len(self._conversations) >= _CONNECTIONS:
                sock.close()
                continue
            task = self._node.watch.spawn(self._converse(sock))
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)

    def recover(self, arenas: list[HostedArena]) -> None:
        """Take over what an earlier daemon of this node left, before anybody connects."""
        found: dict[str, list[tuple[HostedArena, Deed]]] = {}
        for hosted in arenas:
            try:
                deed = read_deed(hosted)
                found.setdefault(check_job(deed.job), []).append((hosted, deed))
            except (ProtocolError, ConfigError) as error:
                _log.error("arena_removed", arena=hosted.arena.id, error=str(error))
                hosted.drop()
        for name, theirs in found.items():
            self._job(name).recover(theirs)

    def _job(self, name: str) -> Job:
        if name not in self._jobs:
            self._jobs[name] = Job(name, self._node)
        return self._jobs[name]

    async def close(self) -> None:
        """Drain all jobs, then end all conversations."""
        seconds = self._node.settings.daemon.drain_seconds
        await asyncio.gather(*(job.close(seconds) for job in self._jobs.values()))
        for task in list(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_HELLO_SECONDS), 0))
        connection = Connection(sock)
        try:
            _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            first = await asyncio.to_thread(self._first, connection, uid)
            if first is None:
                connection.send(StatusInfo(daemon_status(self._node, self._jobs.values())))
                connection.close()
                return
            hello, pidfd = first
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        except DaemonUnavailableError:
            connection.close()  # somebody looked whether we are here
            return
        except (CkptdError, OSError) as error:
            _log.warning("refused", error=str(error))
            code = "version" if isinstance(error, VersionMismatchError) else "protocol"
            with contextlib.suppress(CkptdError):
                connection.send(Refused(PROTOCOL_VERSION, code, str(error)))
            connection.close()
            return
        peer = Peer(connection, pidfd)
        peer.send(Welcome(PROTOCOL_VERSION, self._node.name, self._node.incarnation))
        peer.start()
        if hello.role == "reader":
            await self._readings.serve(peer, hello)
            return
        job = self._job(hello.job)
        await (job.trainer(peer, hello) if hello.role == "trainer" else job.agent(peer, hello.generation))

    async def forget_deserted(self) -> None:
        """Let go of jobs that nobody here works on: each costs a stream, and looks for its coordinator for ever."""
        while True:
            quiet = {name for name, job in self._jobs.items() if job.deserted}
            await asyncio.sleep(_DESERTED_SECONDS)
            for job in self._jobs.values():
                job.tidy(time.monotonic())
            for name in [name for name in quiet if name in self._jobs and self._jobs[name].deserted]:
                _log.info("job_forgotten", job=name)
                await self._jobs.pop(name).close(0)
                self._node.metrics.forget(name)

    async def measure(self) -> None:
        """Set the gauges now and then, until cancelled."""
        metrics = self._node.metrics
        while True:
            metrics.arena_bytes.set(self._node.arenas.used_bytes)
            hanging = metrics.store.hanging()
            if hanging is not None:
                self._node.troubles.begin("store answers", hanging)
            else:
                self._node.troubles.end("store answers")
            metrics.troubles.set(len(self._node.troubles.all()))
            for job in self._jobs.values():
                job.measure()
            await asyncio.sleep(_MEASURE_SECONDS)

    def _notice(self, trouble: Trouble, seconds: float | None) -> None:
        text = f"{trouble.topic}: {trouble.what}" if seconds is None else f"over after {seconds:.0f} s: {trouble.topic}"
        for name, job in self._jobs.items():
            if trouble.job in ("", name):
                job.notice(text)

    def _first(self, connection: Connection, uid: int) -> tuple[Hello, int] | None:
        """In a thread: wait for the first message; None when it asks how we are.

        Raises CkptdError for anything but that or a good Hello, of this user.
        """
        if uid != os.getuid():
            raise ConfigError(f"this daemon serves uid {os.getuid()} only; start one for uid {uid}")
        message, fds = connection.receive()
        if isinstance(message, StatusAsk):
            for fd in fds:
                os.close(fd)
            return None
        for extra in fds[1:]:
            os.close(extra)
        if not isinstance(message, Hello) or message.role not in ROLES or message.protocol != PROTOCOL_VERSION or not fds:
            for fd in fds[:1]:
                os.close(fd)
            if isinstance(message, Hello) and message.protocol != PROTOCOL_VERSION:
                raise VersionMismatchError(different_versions(message.protocol))
            raise ConfigError("a conversation begins with Hello and a pidfd")
        check_job(message.job)
        if not 0 <= message.rank < message.world_size <= WORLD_MAX and message.role != "agent":
            raise ConfigError(f"a rank lies in its world rank={message.rank} world_size={message.world_size}")
        return message, fds[0]
