"""`ckptd diff A B`: what changed from one checkpoint to another, and by how much. Frames with equal hashes are not read."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from ckptd.cli.opening import Opened, Which, opened
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import Shown, progress
from ckptd.cli.words import AsJson, people, print_json
from ckptd.codec.values import has_fractions
from ckptd.config import load_settings
from ckptd.model.layout import GLOBAL
from ckptd.restore.compare import Comparison, Difference, Name, compare
from ckptd.store.base import Store

_NAMES: Final = 20


def diff(
    a: Which,
    b: Which,
    job: JobId,
    limit: Annotated[int, typer.Option(help="so many tensors at most in the table, those that differ most first", min=1)] = 50,
    store: StoreUrl = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Compare two checkpoints of a job, tensor by tensor, whatever their layouts.

    Of the elements in frames that differ: how many have other bytes, and for floats the largest absolute difference and
    ‖B - A‖ ÷ ‖A‖. Exit codes: 0 compared; 1 one of them isn't there, or can't be read; 2 bad usage or settings.
    """
    settings = load_settings(config, {"store": {"url": store}})
    with progress("comparing, frames") as shown, ThreadPoolExecutor(2, thread_name_prefix="ckptd-codec") as pool:
        found, one, other = asyncio.run(_compare(reading_store(settings), job, a, b, pool, shown))
    if json:
        print_json(_plain(found, one, other))
        return
    console = people()
    title = f"from step {one.entry.step}, record {one.entry.seq}, to step {other.entry.step}, record {other.entry.seq}"
    table = Table("name", "dtype", "elements", "changed", "max abs", "relative L2", "not finite", title=title)
    for each in found.different[:limit]:
        table.add_row(*_row(each))
    if found.different:
        console.print(table)
    left = len(found.different) - limit
    console.print(f"{found.equal} equal, {len(found.different)} differ" + (f", {left} of them not shown" if left > 0 else ""))
    for names, entry in ((found.only_a, one.entry), (found.only_b, other.entry)):
        if names:
            few = ", ".join(map(_name, names[:_NAMES])) + (" …" if len(names) > _NAMES else "")
            console.print(f"only in record {entry.seq}: {len(names)}: {few}", markup=False)
    console.print(f"record {one.entry.seq}: {one.read}; record {other.entry.seq}: {other.read}", markup=False)


async def _compare(
    store: Store, job: str, a: str, b: str, pool: ThreadPoolExecutor, shown: Shown
) -> tuple[Comparison, Opened, Opened]:
    one, other = await opened(store, job, a, pool), await opened(store, job, b, pool)
    found = await compare(one.source, other.source, shown.advance)
    found.different.sort(key=lambda each: (not each.unlike, -(each.relative or 0.0), -each.changed, each.name))
    return found, one, other


def _name(name: Name) -> str:
    return name[0] if name[1] == GLOBAL else f"{name[0]} of rank {name[1]}"


def _row(found: Difference) -> tuple[str, ...]:
    elements = f"{found.elements:,}"
    if found.unlike:
        return _name(found.name), found.dtype, elements, f"unlike: {found.unlike}", "", "", ""
    measures = ("", "", "")
    if has_fractions(found.dtype):
        relative = "-" if found.relative is None else f"{found.relative:.3g}"
        measures = (f"{found.largest:.3g}", relative, f"{found.not_finite:,}" if found.not_finite else "")
    return _name(found.name), found.dtype, elements, f"{found.changed:,}", *measures


def _plain(found: Comparison, one: Opened, other: Opened) -> dict[str, Any]:
    return {
        "a": one.plain(),
        "b": other.plain(),
        "equal": found.equal,
        "only_a": [_named(name) for name in found.only_a],
        "only_b": [_named(name) for name in found.only_b],
        "different": [
            {
                **_named(each.name),
                "dtype": each.dtype,
                "elements": each.elements,
                "unlike": each.unlike,
                "compared": each.compared,
                "changed": each.changed,
                **(_measures(each) if has_fractions(each.dtype) else {}),
            }
            for each in found.different
        ],
    }


def _named(name: Name) -> dict[str, Any]:
    return {"name": name[0], "rank": None if name[1] == GLOBAL else name[1]}


def _measures(found: Difference) -> dict[str, Any]:
    return {"max_abs": found.largest, "relative_l2": found.relative, "not_finite": found.not_finite}
