"""Work in threads that is over when its caller returns, whatever happens: threads read and write memory that others reuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


def codec_pool(threads: int, nice: int) -> ThreadPoolExecutor:
    """Threads for hashing, encoding and decoding, at least as nice as that: the trainer's come first on a busy machine.

    The process's other threads stay as they are: a heartbeat must not wait, nor a PUT that a store has begun to take.
    """

    def give_way() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))  # on Linux: of this thread

    return ThreadPoolExecutor(threads, thread_name_prefix="ckptd-codec", initializer=give_way)


async def in_threads(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run all ``calls`` in ``pool``; their results in order.

    When one fails, or the caller is cancelled, those not begun are dropped and those that run are waited for.
    """
    futures = [pool.submit(call) for call in calls]
    try:
        return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
    except BaseException:
        for future in futures:
            future.cancel()
        await _wait([asyncio.wrap_future(future) for future in futures if not future.done()])
        raise


async def _wait(running: Sequence[asyncio.Future[T]]) -> None:
    """Wait for all, even if cancelled meanwhile: the caller raises an error already, and a frame takes milliseconds."""
    pending = {future for future in running if not future.done()}
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError:
            pending = {future for future in pending if not future.done()}
    for future in running:
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio doesn't complain; the first error is on its way


@asynccontextmanager
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises the first error as it is, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
