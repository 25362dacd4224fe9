"""Measures what encoding costs and brings, and what the link carries, over all uploads of one daemon; and chooses by it.

The link is learned from PUTs that kept it busy, and only while encoding did not take the last of the CPU: else the sending was
slowed down by what is to be judged. What is known so is forgotten after some time without news, and raw segments teach it anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.pipeline.choose import Rates, encoding_pays

_TRIAL_EVERY: Final = 61  # segments; a prime, so that it isn't the same part of the state each time
_MADE: Final = 16  # encoded segments that are remembered
_SPARE_CORES: Final = 0.2
_FORGOTTEN_AFTER: Final = 16  # times the PUTs that may be in flight


def idle_core_seconds() -> float:
    """Of all cores since the machine started."""
    return float(Path("/proc/uptime").read_text().split()[1])


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sums up to a moment. The seconds are those in which any PUT was in flight."""

    seconds: float = 0.0
    in_flight_seconds: float = 0.0
    idle_seconds: float = 0.0
    encode_seconds: float = 0.0
    stored_bytes: int = 0


class Meter:
    """``concurrency``: most PUTs in flight; ``threads``: most that encode."""

    def __init__(
        self,
        concurrency: int,
        threads: int,
        clock: Clock = SYSTEM_CLOCK,
        idle_seconds: Callable[[], float] = idle_core_seconds,
    ) -> None:
        self._concurrency, self._threads = concurrency, threads
        self._clock, self._idle_seconds = clock, idle_seconds
        self._in_flight = 0
        self._at, self._idle_at = 0.0, 0.0
        self._now = _Mark()
        self._marks: deque[_Mark] = deque([self._now], maxlen=4 * concurrency + 1)
        self._made: deque[tuple[int, int, float]] = deque(maxlen=_MADE)
        self._since_trial = _TRIAL_EVERY  # the first one is a trial
        self._uploads = 0
        self._link: tuple[float, float] | None = None  # bytes per second, idle cores
        self._puts_since_known = 0

    def encode_next(self) -> bool:
        """Is the next segment to be encoded? Now and then one is, to see what that brings."""
        if self._since_trial >= _TRIAL_EVERY:
            self._since_trial = 1
            return True
        self._since_trial += 1
        rates = self.rates()
        return rates is not None and encoding_pays(rates)

    def rates(self) -> Rates | None:
        """None while something is unknown."""
        if self._link is None or not self._made:
            return None
        raw, stored, seconds = (sum(column) for column in zip(*self._made, strict=True))
        link, idle_cores = self._link
        return Rates(link, idle_cores, seconds / raw, stored / raw, self._threads)

    def encoded(self, raw_bytes: int, stored_bytes: int, cpu_seconds: float) -> None:
        """A segment was encoded."""
        self._made.append((raw_bytes, stored_bytes, cpu_seconds))
        self._add(encode_seconds=cpu_seconds)

    @contextmanager
    def upload(self) -> Iterator[None]:
        """While it lasts there are segments to be PUT."""
        if not self._uploads:
            self._marks.clear()
            self._marks.append(self._now)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1
            self._learn()

    @contextmanager
    def put(self, stored_bytes: int) -> Iterator[None]:
        """While it lasts so many bytes are on their way; they have arrived unless it raises."""
        self._pass_time()
        self._in_flight += 1
        arrived = 0
        try:
            yield
            arrived = stored_bytes
        finally:
            self._pass_time()
            self._in_flight -= 1
            self._add(stored_bytes=arrived)
            self._marks.append(self._now)
            self._puts_since_known += 1
            if len(self._marks) > 2 * self._concurrency:
                self._learn()
            if self._puts_since_known > _FORGOTTEN_AFTER * self._concurrency:
                self._link = None

    def _learn(self) -> None:
        first, last = self._marks[0], self._marks[-1]
        seconds, stored_bytes = last.seconds - first.seconds, last.stored_bytes - first.stored_bytes
        if seconds <= 0 or not stored_bytes:
            return
        in_flight = (last.in_flight_seconds - first.in_flight_seconds) / seconds
        if in_flight < min(self._concurrency, len(self._marks) - 1) / 2:
            return  # it waited for segments, not for the link
        idle = (last.idle_seconds - first.idle_seconds) / seconds
        encoding = (last.encode_seconds - first.encode_seconds) / seconds
        if encoding > _SPARE_CORES > idle:
            return
        self._link = stored_bytes / seconds, idle + encoding
        self._puts_since_known = 0

    def _pass_time(self) -> None:
        now, idle = self._clock.monotonic(), self._idle_seconds()
        if self._in_flight:
            seconds = now - self._at
            self._add(seconds=seconds, in_flight_seconds=seconds * self._in_flight, idle_seconds=max(idle - self._idle_at, 0.0))
        self._at, self._idle_at = now, idle

    def _add(
        self,
        seconds: float = 0.0,
        in_flight_seconds: float = 0.0,
        idle_seconds: float = 0.0,
        encode_seconds: float = 0.0,
        stored_bytes: int = 0,
    ) -> None:
        now = self._now
        self._now = _Mark(
            now.seconds + seconds,
            now.in_flight_seconds + in_flight_seconds,
            now.idle_seconds + idle_seconds,
            now.encode_seconds + encode_seconds,
            now.stored_bytes + stored_bytes,
        )
