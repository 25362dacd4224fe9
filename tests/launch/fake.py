"""A daemon and a coordinator in one, as small as an agent's conversation needs: real sockets, the real wire protocol.

``python -m tests.launch.fake daemon …`` serves on $CKPTD_SOCKET for tests that have the launcher start it; ``coordinator …``
exits with 3, the job being in use.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptd_client.errors import CkptdError
from ckptd_client.messages.agents import Complete, Formed, Join, KvAdd, KvGet, KvSet, KvValue, Leave, Regroup, World
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Gen, Hello, Ok, Welcome
from ckptd_client.wire import Connection

Said = TypeVar("Said", bound=Message)


class Fake:
    """Forms a world of ``want`` nodes as soon as so many wait. Each node's agent has a socket of its own."""

    def __init__(self, want: int) -> None:
        self.want = want
        self.lock = threading.Condition()
        self.log: list[tuple[int, Message]] = []  # (node, what its agent said)
        self.connections: dict[int, Connection] = {}
        self.joining: dict[int, Join] = {}
        self.members: list[int] = []
        self.generation: Gen = (1, 0)
        self.values: dict[tuple[Gen, str], bytes] = {}
        self.added: set[int] = set()
        self.waiting: list[tuple[int, KvGet]] = []
        self.completed = False
        self.mute = False  # take requests, answer nothing: their connections are about to break
        self._listeners: list[socket.socket] = []

    def listen(self, node: int, path: Path) -> None:
        """Serve the agent of ``node`` on a unix socket."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(node, listener), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        self.drop()

    def drop(self) -> None:
        """Break all connections, as a daemon's death does."""
        with self.lock:
            broken, self.connections, self.waiting = list(self.connections.values()), {}, []
        for connection in broken:
            connection.close()

    def said(self, kind: type[Said], node: int | None = None) -> list[Said]:
        """All messages of one kind, from one node or from any."""
        return [message for source, message in self.log if isinstance(message, kind) and node in (None, source)]

    def wait(self, condition: Callable[[], object], seconds: float = 40.0) -> None:
        """Wait until ``condition()`` holds; it is looked at after every message."""
        with self.lock:
            assert self.lock.wait_for(condition, seconds), f"never came about; the agents said {self.log[-20:]}"

    def regroup(self) -> None:
        """Want a new generation."""
        with self.lock:
            self._regroup(self.members)

    def complete(self) -> None:
        """The job is done."""
        with self.lock:
            self.completed = True
            for node in self.connections:
                self._send(node, Complete("all ranks have finished", False))

    def stop(self, diagnosis: str) -> None:
        """The job can't go on."""
        with self.lock:
            for node in self.connections:
                self._send(node, Complete(diagnosis, True))

    def _regroup(self, nodes: list[int]) -> None:
        for node in nodes:
            self._send(node, Regroup(self.generation, "a test wants it"))

    def _send(self, node: int, message: Message) -> None:
        if (connection := self.connections.get(node)) is not None:
            try:
                connection.send(message)
            except CkptdError:
                pass  # its thread will see

    def _accept(self, node: int, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(node, Connection(accepted)), daemon=True).start()

    def _converse(self, node: int, connection: Connection) -> None:
        try:
            hello, fds = connection.receive()
            assert isinstance(hello, Hello) and len(fds) == 1
            os.close(fds[0])
            if hello.role != "agent":
                connection.close()  # trainers train on without a daemon
                return
            with self.lock:
                self.connections[node] = connection
                self._note(node, hello)
                connection.send(Welcome(PROTOCOL_VERSION, f"node{node}", "fake"))
                if self.completed:
                    connection.send(Complete("all ranks have finished", False))
            while True:
                message, _ = connection.receive()
                with self.lock:
                    self._note(node, message)
                    if not self.mute:
                        self._handle(node, message)
        except CkptdError:
            with self.lock:
                if self.connections.get(node) is connection:
                    del self.connections[node]
                self.lock.notify_all()

    def _note(self, node: int, message: Message) -> None:
        self.log.append((node, message))
        self.lock.notify_all()

    def _handle(self, node: int, message: Message) -> None:
        match message:
            case Join() if not self.completed:
                self.joining[node] = message
                self._regroup([member for member in self.members if member not in self.joining])
                if len(self.joining) >= self.want:
                    self._form()
            case KvSet():
                self._put(message.generation, message.key, message.value)
                self._send(node, Ok(message.id))
            case KvAdd():
                total = int(self.values.get((message.generation, message.key), b"0"))
                total += 0 if message.id in self.added else message.amount
                self.added.add(message.id)
                self._put(message.generation, message.key, str(total).encode())
                self._send(node, KvValue(message.id, str(total).encode()))
            case KvGet():
                self.waiting.append((node, message))
                self._serve_waiting()
            case World() | Leave() | _:
                pass

    def _form(self) -> None:
        self.generation = (1, self.generation[1] + 1)
        self.members = sorted(self.joining)
        for rank, node in enumerate(self.members):
            self._send(node, Formed(self.joining[node].id, self.generation, rank, len(self.members)))
        self.joining = {}

    def _put(self, generation: Gen, key: str, value: bytes) -> None:
        self.values[generation, key] = value
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        still = []
        for node, ask in self.waiting:
            if (value := self.values.get((ask.generation, ask.key))) is not None:
                self._send(node, KvValue(ask.id, value))
            else:
                still.append((node, ask))
        self.waiting = still


def main() -> None:
    verb = sys.argv[1]
    if verb == "coordinator":
        sys.exit(3)
    assert verb == "daemon" and "--exit-with-parent" in sys.argv
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    Fake(want=1).listen(0, Path(os.environ["CKPTD_SOCKET"]))
    signal.pause()


if __name__ == "__main__":
    main()
