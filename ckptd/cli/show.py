"""`ckptd show STEP`: one checkpoint, by its log record, manifest, layout and index."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgpack
import typer
from rich.console import Console
from rich.filesize import decimal

from ckptd.cli.listing import Listed, listed
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, people, print_json
from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.commit.state import State
from ckptd.config import load_settings
from ckptd.errors import ConfigError, CorruptError, NotFoundError
from ckptd.model.dtypes import OBJECT
from ckptd.model.keys import log_key
from ckptd.model.layout import GLOBAL
from ckptd.model.records import MAX_RECORD_BYTES, Quarantine, decode
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.store.base import Store, get_small

_LARGEST: Final = 10
_PROGRESS: Final = "ckptd.progress"  # the client's own object: how far the training was


@dataclass(frozen=True, slots=True)
class Found:
    """A commit and what it holds; ``damage`` says why its description can't be read."""

    one: Listed
    checkpoint: Checkpoint | None
    damage: str
    position: dict[str, Any]
    ended: str


def show(
    job: JobId,
    step: Annotated[int | None, typer.Argument(metavar="STEP", help="of the newest live commit of this step", min=0)] = None,
    record: Annotated[int | None, typer.Option(help="number of its log record, which names it for sure", min=0)] = None,
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
    print_json(_plain(found)) if json else _print(found, people())
    if found.damage:
        raise typer.Exit(4)


def choose(entries: tuple[CatalogEntry, ...], step: int | None, record: int | None) -> CatalogEntry:
    """The one that is meant: a step may have been committed more than once. Raises NotFoundError."""
    if record is not None:
        wanted, name = [entry for entry in entries if entry.seq == record], f"no commit has record {record}"
    elif step is not None:
        wanted, name = [entry for entry in entries if entry.step == step], f"no commit is of step {step}"
    else:
        wanted, name = [entry for entry in entries if entry.newest], "nothing is committed"
    if not wanted:
        have = ", ".join(str(entry.step) for entry in entries[-20:]) or "none"
        raise NotFoundError(f"{name}; `ckptd ls` lists them all; steps={have}")
    return max(wanted, key=lambda entry: (entry.status == Status.LIVE, entry.seq))


async def _read(store: Store, job: str, step: int | None, record: int | None) -> Found:
    state = await CommitLog(store, job).load()
    entry = choose(catalog(state), step, record)
    one = await listed(store, job, entry)
    ended = await _ended(store, job, state, entry)
    try:
        checkpoint = await open_checkpoint(store, job, entry.manifest)
        [objects] = await checkpoint.read_objects(store, [GLOBAL])
    except (CorruptError, NotFoundError) as error:
        return Found(one, None, str(error), {}, ended)
    return Found(one, checkpoint, "", _position(objects.get(_PROGRESS, b"")), ended)


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


def _plain(found: Found) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if found.checkpoint is not None:
        content = _content(found.checkpoint)
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
    writers = [writer.rpartition(".")[0] for writer in index.writers]
    return {
        "nodes": sorted(set(writers)),
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


def _print(found: Found, console: Console) -> None:
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
    for dtype, kind in content["by_dtype"].items():
        say(f"  {dtype}: {kind['count']}, {decimal(kind['bytes'])}")
    if content["largest"]:
        say("largest tensors:")
    for tensor in content["largest"]:
        shape = "×".join(map(str, tensor["shape"])) or "scalar"
        say(f"  {tensor['name']}: {tensor['dtype']} {shape}, {decimal(tensor['bytes'])} in {tensor['regions']} regions")
    if found.position:
        say("progress: " + ", ".join(f"{key} {value}" for key, value in found.position.items()))
    for tag, text in manifest.tags.items():
        say(f"tag {tag}: {text}")
