"""Talking with the service manager (systemd's protocol, sd_notify(3) and sd_listen_fds(3)): ready, alive, and kept descriptors.

Without $NOTIFY_SOCKET all of it does nothing. Messages are datagrams on a unix socket, path or abstract. One that can't be sent
is dropped, which is logged once: a service manager in trouble is no reason to fail.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Final

import structlog

_log = structlog.get_logger(__name__)
_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_FDS: Final = 4096


class Notifier:
    """The way to the service manager."""

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        """``address``: of its socket, "@name" for an abstract one. ``watchdog_seconds``: it kills us after such a silence."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._failed = False
        self._fed_seconds = float("-inf")
        self.watchdog_seconds = watchdog_seconds if self._address else None

    def ready(self) -> None:
        """Start-up is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """Feed the watchdog, if it is time to."""
        now = time.monotonic()
        if self.watchdog_seconds is not None and now - self._fed_seconds >= self.watchdog_seconds / 4:
            self._fed_seconds = now
            self._send("WATCHDOG=1")

    def keep(self, name: str, fd: int) -> None:
        """Have this descriptor kept for our successor under ``name`` (letters and digits)."""
        # FDPOLL=0: a file is never "hung up", and must not be dropped as if it were
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)

    def let_go(self, name: str) -> None:
        """What was kept under ``name`` may go."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, text: str, *fds: int) -> None:
        if not self._address:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1.0)
                sock.sendmsg([text.encode()], rights, 0, self._address)
        except OSError as error:
            if not self._failed:
                _log.warning("service_manager_unreachable", error=str(error))
            self._failed = True


def notifier(environment: MutableMapping[str, str]) -> Notifier:
    """As the environment says. Its variables are taken out of it: they are not meant for our children."""
    address = environment.pop("NOTIFY_SOCKET", None)
    usec, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    ours = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
    return Notifier(address, int(usec) / 1e6 if ours else None)


def kept_descriptors(environment: MutableMapping[str, str]) -> dict[str, int]:
    """What the service manager kept for us, by name; the caller's to close. Of two with one name the second is closed."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit() or int(count) > _FDS:
        return {}
    found: dict[str, int] = {}
    for index in range(int(count)):
        fd, name = _FIRST_FD + index, names[index] if index < len(names) else ""
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue  # it was promised and is not there
        if name and name not in found:
            found[name] = fd
        else:
            os.close(fd)
    return found


async def feed(notifier: Notifier, sleep: Callable[[float], Awaitable[None]], probe: Callable[[], Awaitable[object]]) -> None:
    """Feed the watchdog whenever ``probe`` has come back; whoever runs this has an event loop that turns, too."""
    seconds = notifier.watchdog_seconds
    while seconds is not None:
        await probe()
        notifier.alive()
        await sleep(seconds / 4)
