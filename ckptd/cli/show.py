"""`ckptd show STEP`: one checkpoint, by its log record, manifest, layout and index."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

import msgpack
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ckptd.cli.listing import Listed, listed
from ckptd.cli.opening import choose
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, people, print_json
from ckptd.commit.catalog import CatalogEntry, catalog
from ckptd.commit.log import CommitLog
from ckptd.commit.state import State
from ckptd.config import load_settings
from ckptd.errors import ConfigError, CorruptError, NotFoundError
from ckptd.model.dtypes import OBJECT
from ckptd.model.keys import log_key
from ckptd.model.layout import GLOBAL
from ckptd.model.records import MAX_RECORD_BYTES, Quarantine, decode
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.content import Held, codecs, held, writers
from ckptd.restore.source import CountedStore
from ckptd.store.base import Store, get_small

_LARGEST: Final = 10
_WRITERS: Final = 64  # that are printed
_NODES: Final = 4
_PROGRESS: Final = "ckptd.progress"  # the client's own object: how far the training was


@dataclass(frozen=True, slots=True)
class Found:
    """A commit and what it holds; ``damage`` says why its description can't be read."""

    one: Listed
    checkpoint: Checkpoint | None
    damage: str
    position: dict[str, Any]
    ended: str
    read_bytes: int = 0


def show(
    job: JobId,
    step: Annotated[int | None, typer.Argument(metavar="STEP", help="of the newest live commit of this step", min=0)] = None,
    record: Annotated[int | None, typer.Option(help="number of its log record, which names it for sure", min=0)] = None,
    tensors: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="list the tensors and objects of such names, as in 'model.*'")
    ] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show one checkpoint: when and by whom it was made, what it holds, what became of it. Default: the newest one.

    Exit codes: 0 shown; 1 there is none, or it can't be read; 2 bad usage or settings; 4 its description is damaged or gone.
    """
    if step is not None and record is not None:
        raise ConfigError("say STEP or --record, not both")
    settings = load_settings(config, {"store": {"url": store}})
    with progress("reading the checkpoint"):
        found = asyncio.run(_read(reading_store(settings), job, step, record))
    print_json(_plain(found, tensors)) if json else _print(found, tensors, people())
    if found.damage:
        raise typer.Exit(4)


async def _read(store: Store, job: str, step: int | None, record: int | None) -> Found:
    state = await CommitLog(store, job).load()
    entry = choose(catalog(state), step, record)
    one = await listed(store, job, entry)
    ended = await _ended(store, job, state, entry)
    counted = CountedStore(store)
    try:
        checkpoint = await open_checkpoint(counted, job, entry.manifest)
        [objects] = await checkpoint.read_objects(counted, [GLOBAL])
    except (CorruptError, NotFoundError) as error:
        return Found(one, None, str(error), {}, ended)
    return Found(one, checkpoint, "", _position(objects.get(_PROGRESS, b"")), ended, counted.read_bytes)


async def _ended(store: Store, job: str, state: State, entry: CatalogEntry) -> str:
    """What ended it, in words."""
    commit = state.commits[entry.seq]
    if commit.retired_at is not None:
        return f"retired by record {commit.retired_at}"
    if commit.quarantined_at is None:
        return ""
    seq = commit.quarantined_at
    body = decode(seq, await get_small(store, log_key(job, seq), MAX_RECORD_BYTES)).body
    return f"quarantined by record {seq}" + (f": {body.reason}" if isinstance(body, Quarantine) else "")


def _position(body: bytes) -> dict[str, Any]:
    """Scalars of a typed dict (["d", key, value, …]); whatever else it is, is not shown."""
    try:
        node = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException):
        return {}
    if not isinstance(node, list) or node[:1] != ["d"]:
        return {}
    pairs = zip(node[1::2], node[2::2], strict=False)
    return {str(key): value for key, value in pairs if isinstance(value, (int, str, float)) and isinstance(key, str)}


def _plain(found: Found, pattern: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if found.checkpoint is not None:
        content = _content(found.checkpoint)
        content |= {"read_bytes": found.read_bytes, "all_bytes": found.checkpoint.all_bytes}
        if pattern is not None:
            content["tensors"] = [_tensor(one) for one in _matching(found.checkpoint, pattern)]
    return {**found.one.plain(), "ended": found.ended, "damage": found.damage, "progress": found.position, **content}


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    layout, index, manifest = checkpoint.layout, checkpoint.index, checkpoint.manifest
    sizes, counts = Counter[str](), Counter[str]()
    largest: list[tuple[int, str, str, list[int], int]] = []
    for tensor in layout.tensors:
        first = tensor.first_region
        nbytes = int(index.places["nbytes"][first : first + len(tensor.regions)].sum())
        sizes[tensor.dtype] += nbytes
        counts[tensor.dtype] += 1
        if tensor.dtype != OBJECT:
            largest.append((nbytes, tensor.fqn, tensor.dtype, list(tensor.shape), len(tensor.regions)))
    wrote = writers(checkpoint)
    return {
        "nodes": [writer.node for writer in wrote],
        "writers": [asdict(writer) for writer in wrote],
        "codecs": [asdict(codec) for codec in codecs(checkpoint)],
        "parts": len(index.writers),
        "segments": len(index.segments),
        "frames": len(index.frames),
        "layout_bytes": manifest.layout.size_bytes,
        "index_bytes": manifest.index.size_bytes,
        "bases": [
            {"record": base.seq, "step": base.attempt.snapshot.step, "bytes": base.stored_bytes} for base in manifest.bases
        ],
        "by_dtype": {dtype: {"count": counts[dtype], "bytes": size} for dtype, size in sizes.most_common()},
        "largest": [
            {"name": fqn, "dtype": dtype, "shape": shape, "bytes": nbytes, "regions": regions}
            for nbytes, fqn, dtype, shape, regions in heapq.nlargest(_LARGEST, largest)
        ],
    }


def _matching(checkpoint: Checkpoint, pattern: str) -> Iterator[Held]:
    return (one for one in held(checkpoint) if fnmatchcase(one.tensor.fqn, pattern))


def _tensor(one: Held) -> dict[str, Any]:
    tensor = one.tensor
    return {
        "name": tensor.fqn,
        "rank": None if tensor.rank == GLOBAL else tensor.rank,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "cut": one.cut,
        "regions": [
            {"offsets": list(each.region.offsets), "sizes": list(each.region.sizes), "rank": each.rank}
            for each in tensor.regions
        ],
        "raw_bytes": one.raw_bytes,
        "stored_bytes": one.stored_bytes,
        "codecs": list(one.codecs),
        "nodes": list(one.nodes),
    }


def _table(checkpoint: Checkpoint, pattern: str) -> Table:
    table = Table("name", "rank", "dtype", "shape", "cut", "raw", "stored", "codec", "written by")
    for one in _matching(checkpoint, pattern):
        tensor = one.tensor
        rank = "" if tensor.rank == GLOBAL else str(tensor.rank)
        shape = "" if tensor.dtype == OBJECT else "×".join(map(str, tensor.shape)) or "scalar"
        sizes = decimal(one.raw_bytes), decimal(one.stored_bytes)
        table.add_row(escape(tensor.fqn), rank, tensor.dtype, shape, one.cut, *sizes, ", ".join(one.codecs), _few(one.nodes))
    return table


def _few(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:_NODES]) + (f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else "")


def _print(found: Found, pattern: str | None, console: Console) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, markup=False, style=style)

    one, entry, manifest = found.one, found.one.entry, found.one.manifest
    say(f"step {entry.step}, record {entry.seq}: {one.words}", "bold")
    if found.ended:
        say(found.ended, "bold red")
    when = ""
    if one.committed_at is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.committed_at))
        when = f"committed {at} ({duration(max(0.0, time.time() - one.committed_at))} ago), "
    say(f"{when}attempt {entry.attempt}, {'no parent' if entry.parent is None else f'parent record {entry.parent}'}")
    if found.damage or manifest is None or found.checkpoint is None:
        say(f"DAMAGED OR GONE: {found.damage}", "bold red")
        return
    content = _content(found.checkpoint)
    say(f"{manifest.world_size} ranks on {content['parts']} nodes ({', '.join(content['nodes'])})")
    say(
        f"{decimal(manifest.raw_bytes)} raw in {content['frames']} frames and {content['segments']} segments,"
        f" {decimal(manifest.stored_bytes)} of them stored with it"
    )
    for base in content["bases"]:
        say(f"  {decimal(base['bytes'])} unchanged since step {base['step']}, record {base['record']}, and lying there")
    for codec in codecs(found.checkpoint):
        ratio = codec.stored_bytes / codec.raw_bytes
        say(f"  {codec.name}: {codec.frames} frames, {decimal(codec.raw_bytes)}, stored as {ratio:.1%}")
    for writer in writers(found.checkpoint)[:_WRITERS]:
        stored = decimal(writer.stored_bytes)
        say(f"  by {writer.node}: {writer.regions} regions, {decimal(writer.raw_bytes)}; {stored} stored for this checkpoint")
    for dtype, kind in content["by_dtype"].items():
        say(f"  {dtype}: {kind['count']}, {decimal(kind['bytes'])}")
    if pattern is not None:
        console.print(_table(found.checkpoint, pattern))
    elif content["largest"]:
        say("largest tensors (--tensors '*' lists them all):")
    for tensor in content["largest"] if pattern is None else ():
        shape = "×".join(map(str, tensor["shape"])) or "scalar"
        say(f"  {tensor['name']}: {tensor['dtype']} {shape}, {decimal(tensor['bytes'])} in {tensor['regions']} regions")
    if found.position:
        say("progress: " + ", ".join(f"{key} {value}" for key, value in found.position.items()))
    for tag, text in manifest.tags.items():
        say(f"tag {tag}: {text}")
    say(f"read {decimal(found.read_bytes)} of {decimal(found.checkpoint.all_bytes)}")
