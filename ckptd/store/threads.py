"""Threads of one store, apart from asyncio's default pool.

The default pool has cores + 4 threads for the whole process: on a small machine a few slow uploads would fill it, and the
commit log's reads, or an unrelated computation, would wait behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Above any sensible upload concurrency, so that exempt log traffic always finds a thread. Idle threads cost nearly nothing.
MAX_THREADS = 32


class StoreThreads:
    """Runs blocking calls of one store."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="ckptd-store")

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread. When the caller is cancelled the call still runs to its end, and may take effect."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Take no new calls; running ones end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
