"""What all jobs of one daemon share: its name, its store, its threads, its memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.config import Settings
from ckptd.daemon.arenas import ArenaHost
from ckptd.daemon.metrics import DaemonMetrics
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.meter import Meter
from ckptd.pipeline.write import WriteOptions
from ckptd.rpc.access import Access
from ckptd.store.base import Store
from ckptd.troubles import Troubles


class Watch:
    """Tasks that must not fail: if one does, the daemon ends with its error, loudly; its supervisor starts a new one."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it as a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)


@dataclass(frozen=True, slots=True)
class Node:
    """``writer`` is the node's name and this daemon's random incarnation (PROTOCOLS 1): a restarted daemon reuses no key.

    ``store`` gives small requests a deadline. Within the limits, ``upload_store`` repeats uploads until they succeed, and
    ``read_store`` a restore's reads for a while: an object that the store has and can't give must not be waited for for ever.
    """

    name: str
    incarnation: str
    settings: Settings
    store: Store
    upload_store: Store
    read_store: Store
    arenas: ArenaHost
    pool: ThreadPoolExecutor
    fetch_budget: ByteBudget  # of all restores together
    segment_numbers: Iterator[int]
    write_options: WriteOptions
    meter: Meter
    access: Access
    watch: Watch
    troubles: Troubles
    started: float  # on the monotonic clock
    metrics: DaemonMetrics

    @property
    def writer(self) -> str:
        """Unique name of this daemon's life as a writer."""
        return f"{self.name}.{self.incarnation}"
