"""A link of a given speed to a MinIO behind it: a network namespace, a veth pair, and a token bucket at either end.

Needs root and iproute2. Both directions are capped, each by itself; loopback is not touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess

from chaos.minio import MinioServer

_BURST_BYTES = 256 << 10  # several of the 64 KiB packets that a veth carries whole
_WIRE_SHARE = 1514 / 1448  # the bucket counts headers: bytes on the wire per byte of a body, in full packets
_LATENCY = "50ms"  # of the bucket's queue: long enough that TCP finds the rate


class LinkError(RuntimeError):
    """A link can't be made here."""


class Link:
    """Two addresses, ours and that of the far end, in a private network of their own; unlimited until `cap`."""

    def __init__(self) -> None:
        """Raises LinkError naming what is missing."""
        if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
            raise LinkError("a capped link needs root and iproute2 (`ip`, `tc`); run as root, or leave this figure out")
        token = secrets.token_hex(3)
        self.namespace = f"ckptd-{token}"
        self._near, self._far = f"ck{token}a", f"ck{token}b"
        # one of 64 Ki networks of four addresses in the range that is set apart for benchmarks (RFC 2544)
        at = secrets.randbelow(1 << 15) * 4
        self._near_address, self.address = (f"198.18.{(at + i) >> 8 & 0xFF}.{(at + i) & 0xFF}" for i in (1, 2))
        try:
            self._make()
        except LinkError:
            self.close()
            raise

    def command(self, command: list[str]) -> list[str]:
        """The same command at the far end; the process keeps its pid."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cap(self, bytes_per_second: float | None) -> None:
        """Limit both directions, each to so many bytes of bodies; None: no limit."""
        for place, device in ((), self._near), (("-n", self.namespace), self._far):
            _do("tc", *place, "qdisc", "del", "dev", device, "root", may_fail=True)
            if bytes_per_second is not None:
                rate = f"{round(bytes_per_second * _WIRE_SHARE * 8)}bit"
                _do(
                    "tc", *place, "qdisc", "add", "dev", device, "root", "tbf",
                    "rate", rate, "burst", str(_BURST_BYTES), "latency", _LATENCY,
                )  # fmt: skip

    def close(self) -> None:
        """Remove it; processes at the far end must have ended. The pair goes with its namespace."""
        _do("ip", "netns", "delete", self.namespace, may_fail=True)
        _do("ip", "link", "delete", self._near, may_fail=True)

    def _make(self) -> None:
        far = ("-n", self.namespace)
        _do("ip", "netns", "add", self.namespace)
        _do("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.namespace)
        _do("ip", "address", "add", f"{self._near_address}/30", "dev", self._near)
        _do("ip", *far, "address", "add", f"{self.address}/30", "dev", self._far)
        _do("ip", "link", "set", self._near, "up")
        _do("ip", *far, "link", "set", self._far, "up")
        _do("ip", *far, "link", "set", "lo", "up")


class LinkedMinio(MinioServer):
    """A MinIO at the far end of a link; the link is its user's to close, after it."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self.host = link.address

    def command(self) -> list[str]:
        return self._link.command(super().command())


def _do(*command: str, may_fail: bool = False) -> None:
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode != 0 and not may_fail:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
