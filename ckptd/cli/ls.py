"""`ckptd ls`: the checkpoints of a job, read from the commit log and nothing else."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.table import Table

from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.config import load_settings
from ckptd.errors import NotFoundError
from ckptd.model.keys import manifest_key
from ckptd.model.manifest import Manifest, decode_manifest
from ckptd.store.base import Store


def ls(job: JobId, store: StoreUrl = None, config: ConfigFile = None) -> None:
    """List the committed checkpoints of a job, oldest first. Retired ones, whose objects go, are only counted."""
    settings = load_settings(config, {"store": {"url": store}})
    entries, retired = asyncio.run(_read(reading_store(settings), job))
    table = Table("seq", "step", "generation", "ranks", "raw MB", "stored MB", "status", title=f"checkpoints of job {job}")
    for entry, manifest in entries:
        size = ("?", "?", "?") if manifest is None else _sizes(manifest)
        table.add_row(str(entry.seq), str(entry.step), str(entry.generation), *size, _status(entry))
    Console().print(table if entries else f"job {job} has no committed checkpoint")
    if retired:
        Console().print(f"and {retired} retired {'ones' if retired > 1 else 'one'}")


def _status(entry: CatalogEntry) -> str:
    return entry.status + (", newest" if entry.newest else "") + (f", pinned by {', '.join(entry.pins)}" if entry.pins else "")


def _sizes(manifest: Manifest) -> tuple[str, str, str]:
    return str(manifest.world_size), f"{manifest.raw_bytes / 1e6:.1f}", f"{manifest.stored_bytes / 1e6:.1f}"


async def _read(store: Store, job: str) -> tuple[list[tuple[CatalogEntry, Manifest | None]], int]:
    entries = catalog(await CommitLog(store, job).load())
    shown = [entry for entry in entries if entry.status is not Status.RETIRED or entry.pins]
    return [(entry, await _manifest(store, job, entry)) for entry in shown], len(entries) - len(shown)


async def _manifest(store: Store, job: str, entry: CatalogEntry) -> Manifest | None:
    """The manifest; None when it was collected after its commit was retired."""
    try:
        return decode_manifest(await store.get(manifest_key(job, entry.manifest)))
    except NotFoundError:
        return None
