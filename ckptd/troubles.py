"""What is wrong just now, since when, and how often it was noticed.

Whoever notices says `begin`, as often as it likes, and `end` when it is over. The log gets one line when a trouble begins and
one when it is over; what comes and goes, or changes its words, is said once a minute at most. `ckptd status` shows the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock

MAX_TROUBLES: Final = 64
MAX_TEXT: Final = 500
QUIET_SECONDS: Final = 60.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """``topic`` names what is troubled, ``what`` says how. ``job``: empty for what concerns all. ``since``: Unix seconds."""

    topic: str
    what: str
    since: float
    times: int = 1
    job: str = ""


Heard = Callable[[Trouble, float | None], None]
"""Called with a trouble that begins (None) or is over (after how many seconds), whenever the log is told."""


class Troubles:
    """Used by one thread. Bounded: beyond MAX_TROUBLES at once nothing more is noted."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._now: dict[tuple[str, str], Trouble] = {}
        self._began: dict[tuple[str, str], float] = {}
        self._said: dict[tuple[str, str], tuple[float, str]] = {}  # when it was last said, on our clock, and in which words
        self._telling: set[tuple[str, str]] = set()  # the log has their beginning and not yet their end
        self.heard: Heard = lambda _trouble, _seconds: None

    def begin(self, topic: str, what: str, job: str = "") -> None:
        """It is so, or still so."""
        key, what = (job, topic), what[:MAX_TEXT]
        known = self._now.get(key)
        if known is None and len(self._now) >= MAX_TROUBLES:
            return
        if known is None:
            self._began[key] = self._clock.monotonic()
            known = Trouble(topic, what, self._wall(), 0, job)
        self._now[key] = trouble = replace(known, what=what, times=known.times + 1)
        at, words = self._said.get(key, (-QUIET_SECONDS, ""))
        if (key not in self._telling or words != what) and self._clock.monotonic() - at >= QUIET_SECONDS:
            self._said[key] = (self._clock.monotonic(), what)
            self._telling.add(key)
            _log.warning("trouble", topic=topic, what=what, **_named(job))
            self.heard(trouble, None)

    def end(self, topic: str, job: str = "") -> None:
        """It is over, if it was so."""
        key = (job, topic)
        trouble = self._now.pop(key, None)
        if trouble is None:
            return
        seconds = self._clock.monotonic() - self._began.pop(key)
        if key in self._telling:
            self._telling.remove(key)
            _log.warning("trouble is over", topic=topic, what=trouble.what, seconds=round(seconds, 1), **_named(job))
            self.heard(trouble, seconds)
        for old in [old for old, (at, _) in self._said.items() if self._clock.monotonic() - at >= QUIET_SECONDS]:
            if old not in self._now:
                del self._said[old]

    def only(self, found: Mapping[str, str]) -> None:
        """These {topic: what} and no others, for whoever looks at everything again and again."""
        for _, topic in [key for key in self._now if key[1] not in found]:
            self.end(topic)
        for topic, what in found.items():
            self.begin(topic, what)

    def forget(self, job: str) -> None:
        """All of a job that nobody here works on any more. The log is not told: it may still be so."""
        for key in [key for key in self._now if key[0] == job]:
            del self._now[key], self._began[key]
            self._telling.discard(key)

    def of(self, job: str) -> list[Trouble]:
        """Those that concern ``job``, its own and everybody's, the oldest first."""
        return sorted((t for t in self._now.values() if t.job in ("", job)), key=lambda trouble: trouble.since)

    def all(self) -> list[Trouble]:
        """All, the oldest first."""
        return sorted(self._now.values(), key=lambda trouble: trouble.since)


def _named(job: str) -> dict[str, str]:
    return {"job": job} if job else {}
