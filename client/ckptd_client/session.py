"""The connection to the daemon: requests, events, reconnects, forks.

One reader thread per connection. Requests get numbers; a `Pending` is the reply to come. When the connection breaks,
everything pending fails with DaemonUnavailableError, the owner is told once, and `poll` tries again now and then; training is
never held up.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptd_client import errors
from ckptd_client.errors import (
    CkptdError,
    ConfigError,
    DaemonUnavailableError,
    ProtocolError,
    RestoreError,
    VersionMismatchError,
)
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Failed, Hello, Refused, Welcome
from ckptd_client.messages.restoring import RestoreFrames, RestoreRing
from ckptd_client.messages.saving import Aborted, Durable, Notice, Released
from ckptd_client.wire import Connection, dial

_log = logging.getLogger("ckptd")

# Every wait of the client, in seconds.
CONNECT_SECONDS: Final = 5.0  # connect(): dial, then wait for the Welcome
RECONNECT_SECONDS: Final = 1.0  # the same at a step of a running training
RETRY_SECONDS: Final = 1.0  # between two tries to reconnect; a try costs microseconds while nobody listens
REQUEST_SECONDS: Final = 120.0  # registering an arena: the daemon faults it in, up to 3 s per GiB
ASK_SECONDS: Final = 900.0  # RestoreAsk: until every rank has asked, and the coordinator has answered
FRAME_SECONDS: Final = 600.0  # between two frames of a restore
REPORT_SECONDS: Final = 900.0  # until every rank has reported its part
SLOT_SECONDS: Final = 600.0  # save(): until a slot is free
AWAY_SECONDS: Final = 60.0  # waiting for a snapshot: until the successor of a daemon that is gone has come
CLOSE_SECONDS: Final = 600.0  # close(): until everything staged is durable

_living: weakref.WeakSet[Session] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Lost:
    """Stands for the reply that will not come."""

    reason: str


class Pending:
    """A reply, or a stream of messages that ends with one."""

    def __init__(self) -> None:
        self._box: queue.SimpleQueue[tuple[Message, list[int]] | _Lost] = queue.SimpleQueue()

    def put(self, value: tuple[Message, list[int]] | _Lost) -> None:
        """Called by the reader."""
        self._box.put(value)

    def take(self, timeout_seconds: float) -> tuple[Message, list[int]]:
        """The next message and its descriptors, the caller's to close. Raises DaemonUnavailableError or what a Failed says."""
        try:
            got = self._box.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DaemonUnavailableError(
                f"the ckptd daemon didn't answer in time timeout_seconds={timeout_seconds:g}"
            ) from None
        if isinstance(got, _Lost):
            self._box.put(got)
            raise DaemonUnavailableError(got.reason)
        if isinstance(got[0], Failed):
            raise _error_of(got[0])
        return got

    def ready(self) -> bool:
        """Whether `take` would return at once."""
        return not self._box.empty()


def _error_of(failed: Failed) -> CkptdError:
    kind = getattr(errors, failed.code, None)
    if not isinstance(kind, type) or not issubclass(kind, CkptdError) or kind is errors.UnsupportedStateError:
        kind = RestoreError
    return kind(failed.message)


class Session:
    """What stays while connections come and go. The training thread uses it; the reader calls `on_event` and `on_lost`."""

    def __init__(
        self, path: Path, hello: Callable[[], Hello], on_event: Callable[[Message], None], on_lost: Callable[[], None]
    ) -> None:
        self._path, self._hello, self._on_event, self._on_lost = path, hello, on_event, on_lost
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._waiting: dict[int, Pending] = {}
        self._stream: Pending | None = None
        self._ids = itertools.count(1)
        self._next_try = 0.0
        self._warned = self._closed = False
        self.ever_connected = False
        _living.add(self)

    @property
    def connected(self) -> bool:
        """Whether a daemon is at the other end, as far as is known."""
        return self._connection is not None

    @property
    def closed(self) -> bool:
        """Ended for good, by `close` or because this is a forked child."""
        return self._closed

    def connect(self, timeout_seconds: float) -> None:
        """Dial and introduce ourselves. Raises DaemonUnavailableError, VersionMismatchError, ConfigError or ProtocolError."""
        self._next_try = time.monotonic() + RETRY_SECONDS
        connection = dial(self._path, timeout_seconds)
        # receive() has no timeout of its own: closing the socket wakes it
        watch = threading.Timer(timeout_seconds, connection.close)
        watch.daemon = True
        watch.start()
        try:
            _send_hello(connection, self._hello())
            reply, fds = connection.receive()
            _close_all(fds)
            _check_welcome(reply)
        except CkptdError:
            connection.close()
            raise
        finally:
            watch.cancel()
        with self._lock:
            self._connection = connection
        self._warned, self.ever_connected = False, True
        threading.Thread(target=self._read, args=(connection,), name="ckptd-reader", daemon=True).start()

    def poll(self) -> bool:
        """Try to reconnect if it is time to; True when there is a new connection. Never raises."""
        if self.connected or self._closed or time.monotonic() < self._next_try or not self._polling.acquire(blocking=False):
            return False
        try:
            self.connect(RECONNECT_SECONDS)
        except CkptdError as error:
            self.warn(f"training goes on, but nothing is saved: {error}")
            return False
        finally:
            self._polling.release()
        _log.warning("ckptd: connected to the daemon again")
        return True

    def warn(self, text: str) -> None:
        """Warn, but only once per outage."""
        if not self._warned:
            self._warned = True
            _log.warning("ckptd: %s", text)

    def next_id(self) -> int:
        """A number for the next request."""
        return next(self._ids)

    def begin(self, request: Any, stream: bool = False) -> Pending:
        """Send a request. With ``stream``, ring and frames go to the same Pending. Raises DaemonUnavailableError."""
        pending = Pending()
        with self._lock:
            self._waiting[request.id] = pending
            if stream:
                self._stream = pending
        self.send(request)
        return pending

    def request(self, request: Any, timeout_seconds: float) -> tuple[Message, list[int]]:
        """Send and wait for the reply and its descriptors. Raises DaemonUnavailableError, or what a Failed says."""
        return self.begin(request).take(timeout_seconds)

    def send(self, message: Message) -> None:
        """Send an event. Raises DaemonUnavailableError."""
        connection = self._connection
        if connection is None:
            raise DaemonUnavailableError("not connected to a ckptd daemon")
        try:
            connection.send(message)
        except DaemonUnavailableError:
            self._drop(connection, "the ckptd daemon is gone")
            raise

    def close(self) -> None:
        """End it for good."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            self._drop(connection, "closed")

    def _read(self, connection: Connection) -> None:
        try:
            while True:
                message, fds = connection.receive()
                self._dispatch(message, fds)
        except (DaemonUnavailableError, ProtocolError, ValueError, OSError) as error:
            self._drop(connection, str(error))

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, (Released, Durable, Aborted)):
            _close_all(fds)
            self._on_event(message)
            return
        if isinstance(message, Notice):
            _close_all(fds)
            _log.warning("ckptd: %s", message.text)
            return
        with self._lock:
            if isinstance(message, (RestoreRing, RestoreFrames)):
                pending = self._stream
            else:
                pending = self._waiting.pop(getattr(message, "id", -1), None)
        if pending is None:
            _close_all(fds)  # a reply that nobody waits for any more
        else:
            pending.put((message, fds))

    def _drop(self, connection: Connection, reason: str) -> None:
        with self._lock:
            if self._connection is not connection:
                return
            self._connection = None
            waiting, self._waiting, self._stream = list(self._waiting.values()), {}, None
        connection.close()
        for pending in waiting:
            pending.put(_Lost(f"the connection to the ckptd daemon broke: {reason}"))
        self._on_lost()
        if not self._closed:
            self.warn(f"lost the daemon; training goes on, nothing is saved until it is back ({reason})")

    def forget_in_child(self) -> None:
        """In a forked child: give up the inherited socket in silence (shutdown would end the parent's, too)."""
        self._closed = True
        self._lock = threading.Lock()  # some thread of the parent may have held it
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()


def _send_hello(connection: Connection, hello: Hello) -> None:
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        raise DaemonUnavailableError(f"this kernel gives no pidfd, which the daemon needs error={error}") from error
    try:
        connection.send(hello, (pidfd,))
    except DaemonUnavailableError:
        pass  # a daemon that refuses may have closed already; its reason is still there to read, else receive() raises
    finally:
        os.close(pidfd)


def _check_welcome(reply: Message) -> None:
    if isinstance(reply, Refused):
        text = f"{reply.message} ours={PROTOCOL_VERSION} daemon={reply.protocol}"
        if reply.code == "version":
            raise VersionMismatchError(_differ(reply.protocol))
        raise ConfigError(reply.message) if reply.code == "job" else ProtocolError(text)
    if not isinstance(reply, Welcome):
        raise ProtocolError(f"the daemon answered Hello with {type(reply).__name__}")
    if reply.protocol != PROTOCOL_VERSION:
        raise VersionMismatchError(_differ(reply.protocol))


def _differ(theirs: int) -> str:
    older = "client" if theirs > PROTOCOL_VERSION else "daemon"
    return (
        f"this client speaks protocol {PROTOCOL_VERSION}, the daemon on this node {theirs}; the {older} is older:"
        f" install the same version of ckptd and ckptd-client and restart the {older}"
    )


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _in_child() -> None:
    for session in list(_living):
        session.forget_in_child()


os.register_at_fork(after_in_child=_in_child)
