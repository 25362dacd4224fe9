"""`ckptd reshard --dry-run STEP --world N`: what a load into another layout would read, node by node. Nothing is loaded."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import typer
from rich.filesize import decimal
from rich.table import Table

from ckptd.cli.opening import Opened, Which, opened
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, people, print_json
from ckptd.config import Settings, load_settings
from ckptd.errors import ConfigError
from ckptd.restore.fetch import READ_BYTES
from ckptd.restore.worlds import NodeRead, World, node_read, world_of
from ckptd.store.base import Store

_MESH: Final = re.compile(r"\d{1,6}(x\d{1,6}){0,7}")
_MEASURE_SECONDS: Final = 2.0
_FIRST_BYTES: Final = 256 << 10
_QUICK_SECONDS: Final = 0.2
_SHOWN: Final = 64


def reshard(
    step: Which,
    world: Annotated[str, typer.Option(metavar="N|NxM", help="ranks that would load it, or their mesh, as in 2x4")],
    job: JobId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="needed: a trainer's own load is what really reshards")] = False,
    place: Annotated[
        str | None,
        typer.Option(
            metavar="S0|R,S1", help="for each dimension of the mesh: R replicated, S1 shards of dimension 1; default S0"
        ),
    ] = None,
    ranks_per_node: Annotated[int, typer.Option(help="ranks that share a daemon, and so what it fetches", min=1)] = 1,
    link_bytes_per_second: Annotated[
        float | None, typer.Option(help="of each node; default: measured here, by reading segments for up to 2 s", min=1)
    ] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Plan a load of all tensors of global scope into a layout: bytes, objects, requests and seconds of each node.

    --world 6 is FSDP over six ranks, --world 4 --place S1 column shards, --world 2x4 --place R,S0 HSDP. Exit codes: 0 planned;
    1 the checkpoint isn't there, or can't be read; 2 bad usage or settings.
    """
    if not dry_run:
        raise ConfigError("say --dry-run: a checkpoint is resharded by whoever loads it, in any layout; this only plans it")
    target = _world(world, place, ranks_per_node)
    settings = load_settings(config, {"store": {"url": store}})
    with progress("planning") as shown, ThreadPoolExecutor(2, thread_name_prefix="ckptd-codec") as pool:
        found = asyncio.run(_opened_and_link(reading_store(settings), settings, job, step, link_bytes_per_second, pool))
        shown.total = len(target.nodes)
        reads = []
        for ranks in target.nodes:
            ring = settings.arena.ring_bytes
            reads.append(node_read(found[0].checkpoint.layout, found[0].checkpoint.index, target, ranks, ring))
            shown.advance()
    print_json(_plain(*found, target, reads)) if json else _print(*found, target, reads)


def _world(text: str, place: str | None, ranks_per_node: int) -> World:
    if not _MESH.fullmatch(text):
        raise ConfigError(f"--world is a number of ranks, or a mesh as in 2x4; got {text[:40]!r}")
    mesh = [int(size) for size in text.split("x")]
    return world_of(mesh, place.split(",") if place is not None else ["S0"] * len(mesh), ranks_per_node)


async def _opened_and_link(
    store: Store, settings: Settings, job: str, which: str, link: float | None, pool: ThreadPoolExecutor
) -> tuple[Opened, float]:
    """The checkpoint, and bytes per second of the link; 0 where there is nothing to measure it with."""
    found = await opened(store, job, which, pool)
    return found, await _measured(found, settings.store.concurrency) if link is None else link


async def _measured(found: Opened, concurrency: int) -> float:
    """By reading segments, as many at once as a daemon does, nothing twice; in ranges that grow while the link is fast."""
    checkpoint = found.checkpoint
    rows = iter(range(len(checkpoint.index.segments)))
    begun, before = time.monotonic(), found.store.read_bytes

    async def read() -> None:
        at_once = _FIRST_BYTES
        for row in rows:
            at, size_bytes = 0, checkpoint.index.segments[row].size_bytes
            while at < size_bytes:
                asked = time.monotonic()
                if asked - begun >= _MEASURE_SECONDS:
                    return
                await found.store.get(checkpoint.segment_key(row), at, min(at + at_once, size_bytes))
                at += at_once
                if time.monotonic() - asked < _QUICK_SECONDS:
                    at_once = min(2 * at_once, READ_BYTES)

    await asyncio.gather(*(read() for _ in range(concurrency)))
    return (found.store.read_bytes - before) / (time.monotonic() - begun)


def _seconds(read: NodeRead, link: float) -> float | None:
    return read.fetched_bytes / link if link else None


def _plain(found: Opened, link: float, world: World, reads: list[NodeRead]) -> dict[str, Any]:
    return {
        **found.plain(),
        "world": world.size,
        "mesh": list(world.mesh),
        "placements": ["R" if dim is None else f"S{dim}" for dim in world.dims],
        "link_bytes_per_second": link,
        "seconds": max((_seconds(read, link) or 0.0 for read in reads), default=0.0) if link else None,
        "nodes": [
            {
                "ranks": [read.ranks[0], read.ranks[-1]],
                "needed_bytes": read.needed_bytes,
                "frame_bytes": read.frame_bytes,
                "fetched_bytes": read.fetched_bytes,
                "frames": read.frames,
                "shared_frames": read.shared_frames,
                "objects": read.objects,
                "requests": read.requests,
                "amplification": read.amplification,
                "seconds": _seconds(read, link),
            }
            for read in reads
        ],
    }


def _print(found: Opened, link: float, world: World, reads: list[NodeRead]) -> None:
    entry, console = found.entry, people()
    table = Table(
        *("node", "ranks", "needed", "fetched", "amplification", "frames", "shared", "objects", "requests", "seconds"),
        title=f"loading step {entry.step}, record {entry.seq}, into {world.size} ranks",
    )
    for number, read in enumerate(reads[:_SHOWN]):
        ranks = str(read.ranks[0]) if len(read.ranks) == 1 else f"{read.ranks[0]}-{read.ranks[-1]}"
        seconds = _seconds(read, link)
        sizes = decimal(read.needed_bytes), decimal(read.fetched_bytes), f"{read.amplification:.2f}"
        counts = map(str, (read.frames, read.shared_frames, read.objects, read.requests))
        table.add_row(str(number), ranks, *sizes, *counts, "-" if seconds is None else f"{seconds:.2f}")
    console.print(table)
    if len(reads) > _SHOWN:
        console.print(f"and {len(reads) - _SHOWN} more nodes; --json has them all")
    needed, fetched = sum(read.needed_bytes for read in reads), sum(read.fetched_bytes for read in reads)
    slowest = max((_seconds(read, link) or 0.0 for read in reads), default=0.0)
    console.print(
        f"all nodes: {decimal(fetched)} fetched for {decimal(needed)} needed; the slowest needs"
        f" {duration(slowest)} at {decimal(int(link))}/s"
        if link
        else f"all nodes: {decimal(fetched)} fetched for {decimal(needed)} needed"
    )
    console.print(found.read, markup=False)
