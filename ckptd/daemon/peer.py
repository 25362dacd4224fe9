"""One process on the daemon's socket: a thread that reads, a queue of messages for the event loop, and the process's pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

from ckptd.daemon.process import Exit, process_identity
from ckptd.errors import ProtocolError
from ckptd_client.errors import CkptdError, DaemonUnavailableError
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import Failed
from ckptd_client.wire import Connection

_QUEUE = 1024


class Peer:
    """A connected trainer or agent."""

    def __init__(self, connection: Connection, pidfd: int) -> None:
        self._connection = connection
        self.process = process_identity(pidfd)
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()  # never longer than there is room
        self._room = threading.Semaphore(_QUEUE)
        self._exit = Exit(pidfd)
        self.exited = self._exit.event
        self.closed = False

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="ckptd-peer", daemon=True).start()

    async def next(self) -> Message | None:
        """The next message; None when the connection is over."""
        message = await self._inbox.get()
        self._room.release()
        return message

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send; False when the peer is gone or doesn't read: then the connection ends, for half a message can't be mended."""
        try:
            self._connection.send(message, fds)
        except DaemonUnavailableError:
            self.close()
            return False
        return True

    def fail(self, request: int, error: CkptdError) -> None:
        """Answer a request with an error."""
        self.send(Failed(request, type(error).__name__, str(error)))

    def close(self) -> None:
        """End the connection; the pidfd stays watched until the process is gone."""
        self.closed = True
        self._connection.close()
        self._room.release()  # the reader may wait for some, and shall find that the connection is closed

    def forget(self) -> None:
        """The connection is over, and nobody asks when its process ends."""
        self._exit.cancel()

    def _read(self) -> None:
        """In the reader's thread. A full inbox blocks it, and so the peer: that is the bound."""
        try:
            while True:
                message, fds = self._connection.receive()
                for fd in fds:
                    os.close(fd)
                self._room.acquire()
                self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)
        except (DaemonUnavailableError, ProtocolError, RuntimeError):
            pass  # the peer hung up, or talked nonsense, or we are ending: in each case this conversation is over
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, None)
