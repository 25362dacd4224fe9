"""`ckptd cat STEP FQN`: the figures of one tensor, or some of its values. Only the frames that hold them are read."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.table import Table

from ckptd.cli.opening import Opened, Which, find_tensor, opened
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.slices import parse_slice
from ckptd.cli.words import AsJson, people, print_json
from ckptd.config import load_settings
from ckptd.errors import ConfigError
from ckptd.model.columns import Array
from ckptd.model.layout import Tensor
from ckptd.restore.statistics import Statistics, part, statistics
from ckptd.store.base import Store

_MOST_VALUES: Final = 10_000


def cat(
    step: Which,
    fqn: Annotated[str, typer.Argument(metavar="FQN", help="name of the tensor (`ckptd show STEP --tensors '*'` lists them)")],
    job: JobId,
    cut: Annotated[str | None, typer.Option("--slice", metavar="0:2,:4", help="print these values instead of figures")] = None,
    rank: Annotated[int | None, typer.Option(help="of a tensor that belongs to a rank", min=0)] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show one tensor: its smallest and largest element, mean, deviation, NaNs and infinities; or a slice of its values.

    Exit codes: 0 shown; 1 it isn't there, or can't be read; 2 bad usage or settings.
    """
    settings = load_settings(config, {"store": {"url": store}})
    with progress("reading the tensor"), ThreadPoolExecutor(2, thread_name_prefix="ckptd-codec") as pool:
        found, tensor, result = asyncio.run(_read(reading_store(settings), job, step, fqn, rank, cut, pool))
    about = {"name": fqn, "dtype": tensor.dtype, "shape": list(tensor.shape), **found.plain()}
    if json:
        print_json({**about, **(_figures(result) if isinstance(result, Statistics) else {"values": _plain(result)})})
        return
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    people().print(f"{fqn}: {tensor.dtype} {shape}, step {found.entry.step}, record {found.entry.seq}", markup=False)
    if isinstance(result, Statistics):
        table = Table(show_header=False)
        for name, value in _figures(result).items():
            table.add_row(name, "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.9g}")
        people().print(table)
    else:
        with np.printoptions(threshold=_MOST_VALUES, linewidth=160):
            print(result)
    people().print(found.read, markup=False)


async def _read(
    store: Store, job: str, which: str, fqn: str, rank: int | None, cut: str | None, pool: ThreadPoolExecutor
) -> tuple[Opened, Tensor, Statistics | Array]:
    found = await opened(store, job, which, pool)
    tensor = find_tensor(found.checkpoint, fqn, rank)
    if cut is None:
        return found, tensor, await statistics(found.source, tensor)
    region, kept = parse_slice(cut, tensor.shape)
    if region.elements > _MOST_VALUES:
        raise ConfigError(f"--slice {cut} has {region.elements} values; at most {_MOST_VALUES} are printed: ask for fewer")
    values = await part(found.source, tensor, region)
    return found, tensor, values.reshape(kept) if values.size == region.elements else values


def _figures(found: Statistics) -> dict[str, Any]:
    """NaN and infinity are no JSON: of the finite elements, and counted besides."""
    return {
        "count": found.count,
        "min": found.low,
        "max": found.high,
        "mean": found.mean if found.low is not None else None,
        "std": found.std,
        "zeros": found.zero,
        "nan": found.nan,
        "infinite": found.infinite,
    }


def _plain(values: Array) -> Any:
    """Lists of numbers; what JSON has no number for ("nan", "inf", complex) as text."""
    if values.ndim:
        return [_plain(row) for row in values]
    value = values.item()
    return value if isinstance(value, int) or (isinstance(value, float) and np.isfinite(value)) else str(value)
