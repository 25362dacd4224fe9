"""What all jobs of one daemon share: its name, its store, its threads, its memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.config import Settings
from ckptd.daemon.arenas import ArenaHost
from ckptd.pipeline.write import WriteOptions
from ckptd.store.base import Store


@dataclass(frozen=True, slots=True)
class Node:
    """``writer`` is the node's name and this daemon's random incarnation (PROTOCOLS 1): a restarted daemon reuses no key.

    ``store`` gives small requests a deadline; ``data_store`` repeats uploads and reads until they succeed, within the limits.
    """

    name: str
    incarnation: str
    settings: Settings
    store: Store
    data_store: Store
    arenas: ArenaHost
    pool: ThreadPoolExecutor
    segment_numbers: Iterator[int]
    write_options: WriteOptions
    token: str | None

    @property
    def writer(self) -> str:
        """Unique name of this daemon's life as a writer."""
        return f"{self.name}.{self.incarnation}"
