"""`ckptd ls`: the checkpoints of a job, read from the commit log and nothing else."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from ckptd.cli.listing import Listed, read_listing
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, people, print_json
from ckptd.config import load_settings


def ls(
    job: JobId,
    store: StoreUrl = None,
    config: ConfigFile = None,
    everything: Annotated[bool, typer.Option("--all", help="retired ones, too, whose objects go")] = False,
    json: AsJson = False,
) -> None:
    """List the committed checkpoints of a job, oldest first. Retired ones, unless pinned, are only counted.

    Exit codes: 0 listed, also when there are none; 1 the store or the log could not be read; 2 bad usage or settings.
    """
    settings = load_settings(config, {"store": {"url": store}})
    checkpoints = reading_store(settings)
    with progress("reading checkpoints") as shown:
        found, retired = asyncio.run(read_listing(checkpoints, job, everything, shown))
    if json:
        listed = [one.plain() for one in found]
        print_json({"job": job, "store": checkpoints.url, "checkpoints": listed, "retired_not_listed": retired})
        return
    table = Table("record", "step", "generation", "ranks", "age", "raw", "stored", "state", title=f"checkpoints of job {job}")
    for one in found:
        table.add_row(*_row(one))
    people().print(table if found else f"job {job} has no committed checkpoint")
    if retired:
        people().print(f"and {retired} retired {'ones' if retired > 1 else 'one'} that the log still knows")


def _row(one: Listed) -> tuple[str, ...]:
    entry, manifest = one.entry, one.manifest
    size = ("?", "?") if manifest is None else (decimal(manifest.raw_bytes), decimal(manifest.stored_bytes))
    age = "?" if one.committed_at is None else duration(max(0.0, time.time() - one.committed_at))
    ranks = "?" if manifest is None else str(manifest.world_size)
    return str(entry.seq), str(entry.step), str(entry.generation), ranks, age, *size, one.words
