"""Framing on the unix socket between a trainer (or agent) and its daemon.

One message is a 4-byte big-endian length and that many bytes of msgpack: ``[name, {field: value}]`` as `messages` defines
them. File descriptors travel with the first byte of their message (SCM_RIGHTS). Both ends use blocking sockets in threads.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from pathlib import Path

from ckptd_client.errors import DaemonUnavailableError, ProtocolError
from ckptd_client.messages.coding import MESSAGE_BYTES, Message, decode, encode

_LENGTH = struct.Struct(">I")
_FDS = 4


def default_socket() -> Path:
    """Where this user's daemon listens: CKPTD_SOCKET, else the user's runtime directory, else /run/ckptd/<uid>/.

    The last is where the system's service manager starts one: it goes first when it is there.
    """
    if named := os.environ.get("CKPTD_SOCKET"):
        return Path(named)
    system = Path(f"/run/ckptd/{os.getuid()}/daemon.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "ckptd" / "daemon.sock" if runtime and not system.exists() else system


class Connection:
    """A socket that carries whole messages; `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send one message; raises DaemonUnavailableError when the peer is gone or hasn't read for the socket's timeout."""
        body = encode(message)
        data = memoryview(_LENGTH.pack(len(body)) + body)
        try:
            with self._send_lock:
                sent = 0
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = self._sock.sendmsg([data], rights)
                if sent < len(data):
                    self._sock.sendall(data[sent:])
        except OSError as error:
            raise DaemonUnavailableError(f"the peer on the ckptd socket is gone error={error}") from error

    def receive(self) -> tuple[Message, list[int]]:
        """Wait for one message and the descriptors that came with it (the caller's to close).

        Raises DaemonUnavailableError at the end of the stream, ProtocolError for anything that is no message.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 < length <= MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes is outside 1..{MESSAGE_BYTES}")
        message = decode(self._exactly(length))
        fds, self._fds = self._fds, []
        return message, fds

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view, have = memoryview(data), 0
        while have < count:
            try:
                got, ancillary, flags, _ = self._sock.recvmsg_into(
                    [view[have:]], socket.CMSG_SPACE(_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise DaemonUnavailableError(f"the ckptd socket broke error={error}") from error
            self._take_fds(ancillary)
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError(f"more than {_FDS} descriptors came with one message")
            if not got:
                raise DaemonUnavailableError("the peer closed the ckptd socket")
            have += got
        return data

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)

    def abandon(self) -> None:
        """In a forked child: let go of the inherited descriptor; a shutdown would end the parent's connection."""
        os.close(self._sock.detach())

    def close(self) -> None:
        """Wake a blocked `receive` and close; descriptors not handed out are closed too."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already gone
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def dial(path: Path, timeout_seconds: float) -> Connection:
    """Connect to a daemon. ``timeout_seconds`` bounds the connect and later each send. Raises DaemonUnavailableError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout_seconds)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise DaemonUnavailableError(
            f"no ckptd daemon answers; start one with `ckptd daemon` socket={path} error={error}"
        ) from error
    seconds = int(timeout_seconds)
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", max(seconds, 1), 0))
    return Connection(sock)
