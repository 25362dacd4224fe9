"""What has happened to the job, for people: the last thousand events, numbered within one coordinator's reign.

Nothing is decided by them, and they go with their coordinator: the commit log is what stays.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

KEPT: Final = 1000
MAX_TEXT: Final = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """``number`` counts from 1 in each epoch; ``at`` is in Unix seconds."""

    epoch: int
    number: int
    at: float
    kind: str
    text: str


class Events:
    """A bounded memory of events. Readers that are slower than it forgets are told how many they missed."""

    def __init__(self, epoch: int, wall: Callable[[], float] = time.time, kept: int = KEPT) -> None:
        self._epoch = epoch
        self._wall = wall
        self._events: deque[Event] = deque(maxlen=kept)
        self._last = 0
        self._more = asyncio.Event()
        self._closed = False

    def add(self, kind: str, text: str) -> None:
        """It has happened just now."""
        self._last += 1
        self._events.append(Event(self._epoch, self._last, self._wall(), kind, text[:MAX_TEXT]))
        self._wake()

    def close(self) -> None:
        """The coordinator ends: followers get what is left, and their end."""
        self._closed = True
        self._wake()

    def since(self, epoch: int, after: int) -> tuple[list[Event], int]:
        """Those remembered after number ``after`` of ``epoch``, and how many before them are forgotten."""
        first = after + 1 if epoch == self._epoch else 1
        found = [event for event in self._events if event.number >= first]
        return found, max(0, (found[0].number if found else self._last + 1) - first)

    async def follow(self, epoch: int, after: int) -> AsyncIterator[tuple[Event, int]]:
        """Each event after that, now and later, with the number of those forgotten just before it; until `close`."""
        while True:
            more = self._more
            found, missed = self.since(epoch, after)
            for event in found:
                yield event, missed
                epoch, after, missed = event.epoch, event.number, 0
            if self._closed:
                return
            if not found:
                await more.wait()

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()
