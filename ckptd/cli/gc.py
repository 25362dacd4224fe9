"""`ckptd gc`: delete what nobody can need any more, or only say what that is."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, print_json, since
from ckptd.commit.collect import Item, Plan, make_plan
from ckptd.commit.log import CommitLog
from ckptd.commit.sweep import Freed, execute
from ckptd.config import load_settings
from ckptd.store.base import Store


def gc(
    job: JobId,
    store: StoreUrl = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be deleted, and why")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the objects of retired checkpoints and given-up attempts whose grace is over. The coordinator does so by itself.

    Safe beside a running job and beside other collectors. Nothing is deleted that a live or pinned checkpoint needs.
    """
    settings = load_settings(config, {"store": {"url": store}})
    grace_seconds = settings.coordinator.grace_seconds
    plan, freed = asyncio.run(_run(job, reading_store(settings), grace_seconds, dry_run))
    if as_json:
        print_json(_plain(job, plan, freed, grace_seconds))
    else:
        _print(Console(), job, plan, freed)


async def _run(job: str, store: Store, grace_seconds: float, dry_run: bool) -> tuple[Plan, Freed | None]:
    log = CommitLog(store, job)
    with progress("looking"):
        plan = await make_plan(store, job, await log.load(), grace_seconds, {})
    if dry_run:
        return plan, None
    with progress("deleting", sum(item.size_bytes for item in plan.due), in_bytes=True) as shown:
        return plan, await execute(store, log, plan, lambda item: shown.advance(item.size_bytes))


def _print(console: Console, job: str, plan: Plan, freed: Freed | None) -> None:
    items = [*plan.due, *(plan.waiting if freed is None else ())]
    if items:
        title = f"{'may be' if freed is None else 'were'} deleted of job {job}"
        table = Table("what", "why", "objects", "bytes", "since", "due", title=title)
        for item in items:
            due = "now" if item.due_seconds <= plan.now_seconds else f"in {duration(item.due_seconds - plan.now_seconds)}"
            cells = str(item.thing), item.why, str(len(item.objects)), decimal(item.size_bytes)
            table.add_row(*cells, since(item.since_seconds, plan.now_seconds).removeprefix("since "), due)
        console.print(table)
    console.print(_summary(job, plan, freed), soft_wrap=True, highlight=False, markup=False)
    for thing, why in plan.held[:20]:
        console.print(f"kept: {thing}: {why}", soft_wrap=True, highlight=False)
    for attempt in plan.unsettled[:20]:
        console.print(f"kept: the data of attempt {attempt}, which is neither committed nor given up", soft_wrap=True)


def _summary(job: str, plan: Plan, freed: Freed | None) -> str:
    if freed is not None:
        waiting = f"; {len(plan.waiting)} things wait for their grace" if plan.waiting else ""
        return f"freed {decimal(freed.size_bytes)} in {freed.objects} objects of job {job}{waiting}"
    now, later = (sum(item.size_bytes for item in items) for items in (plan.due, plan.waiting))
    return f"{decimal(now)} could be freed now, {decimal(later)} when their grace is over; nothing was deleted"


def _plain(job: str, plan: Plan, freed: Freed | None, grace_seconds: float) -> dict[str, object]:
    return {
        "job": job,
        "now": plan.now_seconds,
        "grace_seconds": grace_seconds,
        "due": [_plain_item(item) for item in plan.due],
        "waiting": [_plain_item(item) for item in plan.waiting],
        "held": [{"what": str(thing), "why": why} for thing, why in plan.held],
        "unsettled": [str(attempt) for attempt in plan.unsettled],
        "freed": None if freed is None else {"objects": freed.objects, "bytes": freed.size_bytes},
    }


def _plain_item(item: Item) -> dict[str, object]:
    return {
        "what": str(item.thing),
        "kind": item.thing.kind.value,
        "why": item.why,
        "since": item.since_seconds,
        "due": item.due_seconds,
        "objects": len(item.objects),
        "bytes": item.size_bytes,
    }
