"""How long one operation on the log keeps trying when the store doesn't answer."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.errors import UnavailableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Budget of one load, refresh or append, and where it gets time and chance from.

    deadline_seconds: after this no call is repeated. Longer rides out longer outages; meanwhile the caller waits. A call that
    hangs is ended by the store's own request timeout, not by this.

    first_wait_seconds, longest_wait_seconds: the wait after try n is random in [0, min(longest, first * 2**n)]; jitter, so that
    many daemons don't come back in step.
    """

    deadline_seconds: float = 60.0
    first_wait_seconds: float = 0.1
    longest_wait_seconds: float = 5.0
    clock: Clock = SYSTEM_CLOCK
    chance: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        if self.deadline_seconds < 0 or self.first_wait_seconds <= 0 or self.longest_wait_seconds < self.first_wait_seconds:
            raise ValueError("deadline >= 0 and 0 < first wait <= longest wait, please")

    def start(self) -> Effort:
        """One operation's budget, from now."""
        return Effort(self, self.clock.monotonic() + self.deadline_seconds)


@dataclass(frozen=True, slots=True)
class Effort:
    """What is left of one operation's budget."""

    patience: Patience
    until: float

    @property
    def spent(self) -> bool:
        """Is the deadline over?"""
        return self.patience.clock.monotonic() >= self.until

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """``await call()``, again while it raises UnavailableError and the deadline isn't over; then the last error."""

        async def once() -> T:  # tenacity awaits only what it sees to be a coroutine function, which a lambda isn't
            return await call()

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            sleep=self.patience.clock.sleep,
            wait=self._wait,
            stop=lambda _: self.spent,
            reraise=True,
        )
        return await retrying(once)

    def _wait(self, tries: RetryCallState) -> float:
        patience = self.patience
        bound = patience.first_wait_seconds * 2 ** min(tries.attempt_number, 30)
        return patience.chance.uniform(0, min(patience.longest_wait_seconds, bound))
