"""What a trainer holds of a snapshot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ckptd_client.errors import SaveError
from ckptd_client.session import AWAY_SECONDS

if TYPE_CHECKING:
    from ckptd_client.staging import Stager

_LOOK_SECONDS: Final = 0.5  # between two looks for the daemon's successor while waiting for a snapshot


class Handle:
    """One snapshot of this rank. Saved means `durable`: committed, on all ranks."""

    def __init__(self, step: int, stager: Stager) -> None:
        self.step = step
        self._stager = stager
        self._durable = False
        self._reason: str | None = None
        self._staged = False
        self.hidden = False
        """Whether what only the optimizers write is copied behind the training. Not in the first steps, not with `save`, not
        from a GPU whose host can't lock the pages of shared memory."""

    @property
    def staged(self) -> bool:
        """Whether this rank's state is in shared memory, complete. Says nothing about other ranks.

        A snapshot that is copied behind the training is complete when the next optimizer step begins; from a GPU, when an
        optimizer step or `step` begins and the copy is over.
        """
        return self._staged

    @property
    def durable(self) -> bool:
        """Whether the snapshot of all ranks is committed in the store."""
        return self._durable

    @property
    def open(self) -> bool:
        """Whether neither is known yet: durable, or given up."""
        return not self._durable and self._reason is None

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Return once durable. Raises SaveError when the snapshot was given up, its fate is unknown, or the time is over.

        When the daemon goes away meanwhile, its successor is looked for; it takes over what is staged.
        """
        self._stager.join_for(self)
        deadline = float("inf") if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self.open:
            away_seconds = self._stager.revive()
            if away_seconds > AWAY_SECONDS:
                raise SaveError(
                    f"the daemon is away, and with it what became of step={self.step} away_seconds={away_seconds:.0f}"
                )
            left = deadline - time.monotonic()
            with self._stager.changed:
                if not self._stager.changed.wait_for(lambda: not self.open, max(0.0, min(left, _LOOK_SECONDS))) and left <= 0:
                    raise SaveError(f"not durable in time step={self.step} timeout_seconds={timeout_seconds}")
        if not self._durable:
            raise SaveError(f"the snapshot was given up: {self._reason} step={self.step}")

    def settle(self, durable: bool, reason: str | None) -> None:
        """Called under the condition; the first outcome stands."""
        if self.open:
            self._durable, self._reason = durable, None if durable else reason
            self._stager.changed.notify_all()

    def mark_staged(self) -> None:
        """The slot is sealed."""
        self._staged = True
