"""How long a snapshot blocks the trainer, beside a warm copy of the same bytes and DCP's `async_save`."""

from __future__ import annotations

from benchmarks.result import Result
from benchmarks.rounds import compete


def measure(total_bytes: int, rounds: int) -> list[Result]:
    """`save(state, step)` until it returns, all of it staged; nothing else is on its way meanwhile."""
    return [compete("stall", "seconds a trainer is blocked by a snapshot, the slower rank", "memcpy", total_bytes, rounds)]
