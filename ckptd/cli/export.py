"""`ckptd export STEP`: a checkpoint as files of another format."""

from __future__ import annotations

import asyncio
import os
import secrets
from enum import StrEnum
from pathlib import Path
from socket import gethostname
from typing import Annotated

import typer
from rich.filesize import decimal

from ckptd.cli.choosing import Seq, Step, check_choice, choose, holder, named
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import Shown, progress
from ckptd.commit.log import CommitLog
from ckptd.commit.office import pin, unpin
from ckptd.config import load_settings
from ckptd.interchange.exporting import State, read_state, refs
from ckptd.interchange.target import whole_directory, whole_file
from ckptd.interchange.write_dcp import write_dcp
from ckptd.interchange.write_safetensors import SHARD_BYTES, bytes_of, write_safetensors
from ckptd.interchange.write_torch import write_torch
from ckptd.restore.checkpoint import Checkpoint, check_entry, open_checkpoint
from ckptd.store.base import Store


class Format(StrEnum):
    """What is written."""

    DCP = "dcp"
    TORCH = "torch"
    SAFETENSORS = "safetensors"


def export(
    job: JobId,
    form: Annotated[Format, typer.Option("--format", help="dcp and torch hold everything, safetensors model weights")],
    step: Step = None,
    seq: Seq = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: JOB-step-STEP-FORMAT here, or ….pt")] = None,
    part: Annotated[
        str | None, typer.Option(help='this entry alone; default: all, for safetensors "model" if there is one')
    ] = None,
    shard_bytes: Annotated[int, typer.Option(help="of a safetensors file, or one tensor", min=1)] = SHARD_BYTES,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Write a checkpoint as files that PyTorch, or others, read. Needs neither torch nor a coordinator.

    Every byte is verified, in bounded memory. The files appear when all is written, never half of them.
    The checkpoint is pinned meanwhile.
    """
    check_choice(step, seq)
    settings = load_settings(config, {"store": {"url": store}})
    print(asyncio.run(_export(reading_store(settings), job, step, seq, form, output, part, shard_bytes)))


async def _export(
    store: Store, job: str, step: int | None, seq: int | None, form: Format, output: Path | None, part: str | None, shard: int
) -> str:
    log = CommitLog(store, job)
    entry = choose((entry for entry in (await log.load()).commits.values() if entry.live), step, seq, "live")
    if output is None:
        suffix = ".pt" if form is Format.TORCH else f"-{form}"
        output = Path(f"{job}-step-{entry.attempt.snapshot.step}{suffix}")
    who = holder(f"export-{gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[:128])
    await pin(log, entry.n, who)
    try:
        checkpoint = await open_checkpoint(store, job, entry.manifest)
        check_entry(checkpoint.manifest, entry)
        state = await read_state(store, checkpoint, part, weights=form is Format.SAFETENSORS, names=form is Format.DCP)
        tensors = refs(state.tree)
        total = sum(bytes_of(state.tensor(ref)) for ref in tensors.values())
        with progress("exporting", total, in_bytes=True) as shown:
            await _write(store, checkpoint, state, form, output, shard, shown)
    finally:
        await unpin(log, entry.n, who)
    return f"{named(entry)} is exported: {len(tensors)} tensors, {decimal(total)} in {output}"


async def _write(
    store: Store, checkpoint: Checkpoint, state: State, form: Format, output: Path, shard: int, shown: Shown
) -> None:
    if form is Format.TORCH:
        with whole_file(output) as path:
            await write_torch(store, checkpoint, state, path, shown.advance)
        return
    with whole_directory(output) as directory:
        if form is Format.DCP:
            await write_dcp(store, checkpoint, state, directory, shown.advance)
        else:
            await write_safetensors(store, checkpoint, state, directory, shard, shown.advance)
