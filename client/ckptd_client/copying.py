"""One hidden copy: what of it a thread makes in ordinary memory, and what devices make on streams of their own."""

from __future__ import annotations

from ckptd_client.behind import Behind
from ckptd_client.devices import Outgoing


class Copying:
    """A snapshot's tensors on their way, numbered as they were given: those in ordinary memory first."""

    def __init__(self, host: Behind | None, device: Outgoing | None, hosts: int) -> None:
        """``hosts``: how many of the tensors are in ordinary memory. Either part may be missing."""
        self.host, self.device, self._hosts = host, device, hosts
        self._written: list[int] | None = None  # of those in ordinary memory

    def fence(self) -> bool:
        """To be called before the tensors are written: what this thread does next comes after their copies.

        Ordinary memory is copied to its end here; a device does that by itself. Returns whether all copies are over. Raises
        what went wrong.
        """
        if self.host is not None and self._written is None:
            self._written = self.host.finish()
        return self.device is None or self.device.fence()

    def finish(self) -> list[int]:
        """Wait for the end of the copy; which tensors were written before `fence`, so that their copies are of no use."""
        self.fence()
        on_devices = self.device.finish() if self.device is not None else []
        return [*(self._written or ()), *(self._hosts + at for at in on_devices)]

    def abandon(self) -> None:
        """Wait until no device writes to the slot any more. Never raises."""
        if self.device is not None:
            self.device.abandon()
