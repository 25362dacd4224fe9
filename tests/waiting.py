"""Waiting for something to become true, with a deadline; tests never sleep for a guessed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.02


async def eventually(condition: Callable[[], bool | Awaitable[bool]], what: str, deadline_seconds: float = 60.0) -> None:
    """Return when ``condition`` holds; AssertionError with ``what`` after the deadline."""
    give_up_at = time.monotonic() + deadline_seconds
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < give_up_at, f"not within {deadline_seconds} s: {what}"
        await asyncio.sleep(POLL_SECONDS)


def eventually_sync(condition: Callable[[], bool], what: str, deadline_seconds: float = 60.0) -> None:
    """The same without a loop."""
    give_up_at = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {deadline_seconds} s: {what}"
        time.sleep(POLL_SECONDS)
