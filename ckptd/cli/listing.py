"""The committed checkpoints of a job with all that a listing shows of each, read from the store and nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from ckptd.cli.asking import read_manifest
from ckptd.cli.progress import Shown
from ckptd.cli.words import records
from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.errors import NotFoundError
from ckptd.model.keys import log_key
from ckptd.model.manifest import Manifest
from ckptd.store.base import Store

_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Listed:
    """A commit. ``manifest`` is None once it was collected, or when it is damaged; ``committed_at`` is by the store's clock."""

    entry: CatalogEntry
    manifest: Manifest | None
    committed_at: float | None

    @property
    def words(self) -> str:
        """What became of it."""
        entry = self.entry
        words = [str(entry.status)]
        if entry.newest:
            words.append("newest")
        if entry.pins:
            words.append("pinned by " + " ".join(entry.pins))
        if entry.base_of:
            words.append("a base of " + records(entry.base_of))
        if self.manifest is None:
            words.append("manifest gone" if entry.status != Status.LIVE else "MANIFEST GONE OR DAMAGED")
        return ", ".join(words)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        entry, manifest = self.entry, self.manifest
        return {
            "record": entry.seq,
            "step": entry.step,
            "generation": str(entry.generation),
            "attempt": str(entry.attempt),
            "state": str(entry.status),
            "newest": entry.newest,
            "pins": list(entry.pins),
            "parent": entry.parent,
            "bases": [] if manifest is None else [base.seq for base in manifest.bases],
            "base_of": list(entry.base_of),
            "committed_unix_seconds": self.committed_at,
            "age_seconds": None if self.committed_at is None else max(0.0, time.time() - self.committed_at),
            "world_size": None if manifest is None else manifest.world_size,
            "raw_bytes": None if manifest is None else manifest.raw_bytes,
            "stored_bytes": None if manifest is None else manifest.stored_bytes,
            "referred_bytes": None if manifest is None else sum(base.stored_bytes for base in manifest.bases),
            "tags": {} if manifest is None else dict(manifest.tags),
        }


async def read_listing(store: Store, job: str, everything: bool, shown: Shown) -> tuple[list[Listed], int]:
    """Commits in log order, and how many retired ones are left out unless ``everything``. Raises as log and store do."""
    known = catalog(await CommitLog(store, job).load())
    entries = [entry for entry in known if everything or entry.status is not Status.RETIRED or entry.pins]
    shown.total = len(entries)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def read(entry: CatalogEntry) -> Listed:
        async with gate:
            found = await listed(store, job, entry)
        shown.advance()
        return found

    return list(await asyncio.gather(*(read(entry) for entry in entries))), len(known) - len(entries)


async def listed(store: Store, job: str, entry: CatalogEntry) -> Listed:
    """One of them. Raises what the store raises."""
    try:
        at: float | None = (await store.info(log_key(job, entry.seq))).modified_seconds
    except NotFoundError:
        at = None
    return Listed(entry, await read_manifest(store, job, entry), at)
