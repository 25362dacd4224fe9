"""`ckptd verify`: is what the log promises there, and whole? Reads, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from typer.core import TyperCommand

from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.progress import Shown, progress
from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.config import load_settings
from ckptd.errors import ConfigError
from ckptd.model.ids import Snapshot
from ckptd.restore.verify import CheckpointReport, LogReport, sample, verify_checkpoint, verify_log
from ckptd.store.base import Store

LOG_RECORDS: Final = 1_000
ALL_LOG_RECORDS: Final = 100_000
_SHARE: Final = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%")


class OptionalShare(TyperCommand):
    """``--read-data`` alone means all of it; typer knows no options with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, with the value filled in."""
        return super().parse_args(ctx, ["--read-data=100%" if arg == "--read-data" else arg for arg in args])


def verify(
    job: JobId,
    step: Annotated[int | None, typer.Argument(help="checkpoints of this step; default: the newest", min=0)] = None,
    every: Annotated[bool, typer.Option("--all", help="every live checkpoint, and the whole log")] = False,
    read_data: Annotated[
        str, typer.Option("--read-data", metavar="[=5%]", help="also read the data, or a random sample of its frames")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="repeat a sample")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Check log records, manifests, layouts, indexes and segments of a job's checkpoints. Exit code 1 if anything is bad."""
    if every and step is not None:
        raise ConfigError("say a STEP or --all, not both")
    share = _share(read_data)
    settings = load_settings(config, {"store": {"url": store}})
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    with progress("verifying", in_bytes=True) as shown:
        log, reports = asyncio.run(
            _run(reading_store(settings), job, step, every, settings.store.concurrency, share, seed, shown)
        )
    sampled = seed if 0 < share < 1 else None
    if as_json:
        print(json.dumps(_as_json(job, log, reports, sampled), indent=2))
    else:
        _print(job, log, reports, sampled)
    if log.bad or any(report.bad for report in reports):
        raise SystemExit(1)


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text)
    if not text:
        return 0.0
    if found is None or not 0 < float(found[1]) <= 100:
        raise ConfigError(f"--read-data alone reads everything, --read-data=5% a sample; got {text[:40]!r}")
    return float(found[1]) / 100


async def _run(
    store: Store, job: str, step: int | None, every: bool, concurrency: int, share: float, seed: int, shown: Shown
) -> tuple[LogReport, list[CheckpointReport]]:
    log = CommitLog(store, job)
    state = await log.load()
    chosen = _choose(job, catalog(state), step, every)
    log_report = await verify_log(store, job, state, ALL_LOG_RECORDS if every else LOG_RECORDS, concurrency)
    reports = []
    for entry in chosen:
        chance = random.Random(f"{seed}-{entry.seq}")  # noqa: S311 (a sample, no secret)
        commit = state.commits[entry.seq]
        reports.append(await verify_checkpoint(store, job, commit, concurrency, sample(share, chance), shown.advance))
    if any(report.bad for report in reports):
        # What was retired while we read may be gone by right.
        now = await log.refresh()
        for report in reports:
            report.ended = now.commits.get(report.entry.n) != report.entry
            if report.ended:
                report.bad.clear()
    return log_report, reports


def _choose(job: str, entries: tuple[CatalogEntry, ...], step: int | None, every: bool) -> list[CatalogEntry]:
    """Raises ConfigError when there is none."""
    live = [entry for entry in entries if entry.status is Status.LIVE]
    if every:
        return live
    if step is None:
        return [entry for entry in live if entry.newest]
    of_step = [entry for entry in entries if entry.step == step]
    chosen = [entry for entry in of_step if entry.status is Status.LIVE] or [
        entry for entry in of_step if entry.status is Status.QUARANTINED
    ]
    if not chosen:
        why = (
            "it was retired" if of_step else f"there are live ones of steps {', '.join(str(e.step) for e in live[-20:]) or '-'}"
        )
        raise ConfigError(f"job {job} has no checkpoint of step {step} to verify: {why}")
    return chosen


def _print(job: str, log: LogReport, reports: list[CheckpointReport], seed: int | None) -> None:
    console = Console()
    covers = "whole: the fold of all records is what readers see" if log.whole else "what is before was not looked at"
    if log.bad:
        covers = "DAMAGED"
    console.print(
        f"commit log of job {job}: records {log.first} to {log.tail} {covers}" if log.tail >= 0 else "the log is empty"
    )
    table = Table("seq", "step", "status", "objects", "stored", "frames", "read", "result", title=f"checkpoints of job {job}")
    for report in reports:
        read = f"{report.read_frames} ({decimal(report.read_bytes)})" if report.read_frames else "-"
        result = f"[red]{len(report.bad)} BAD[/red]" if report.bad else "ended meanwhile" if report.ended else "good"
        sizes = str(report.objects), decimal(report.stored_bytes), str(report.frames)
        table.add_row(str(report.entry.n), str(_snapshot(report).step), _status(report), *sizes, read, result)
    console.print(table if reports else f"job {job} has no live checkpoint")
    if seed is not None:
        console.print(f"the frames were a random sample; --seed {seed} reads the same ones")
    bad = [*log.bad, *(bad for report in reports for bad in report.bad)]
    for each in bad:
        console.print(f"BAD {each.key}: {each.problem}", soft_wrap=True, markup=False, highlight=False)
    if log.bad:
        console.print(
            "A damaged log needs you: bring its objects back (bucket versions, a backup) before a coordinator starts."
        )
    if any(report.bad for report in reports):
        console.print(
            "Nothing was changed. A job that restores a damaged checkpoint quarantines it by itself and goes one back;"
            " `ckptd retire` puts it out of use now.",
            " Objects that you can bring back (bucket versions, a backup) make it good again.",
        )


def _snapshot(report: CheckpointReport) -> Snapshot:
    return report.entry.attempt.snapshot


def _status(report: CheckpointReport) -> str:
    return "live" if report.entry.live else "quarantined"


def _as_json(job: str, log: LogReport, reports: list[CheckpointReport], seed: int | None) -> dict[str, Any]:
    return {
        "job": job,
        "seed": seed,
        "log": {
            "first": log.first,
            "tail": log.tail,
            "whole": log.whole,
            "bad": [{"key": bad.key, "problem": bad.problem} for bad in log.bad],
        },
        "checkpoints": [
            {
                "seq": report.entry.n,
                "step": _snapshot(report).step,
                "generation": str(_snapshot(report).generation),
                "status": _status(report),
                "ended_meanwhile": report.ended,
                "objects": report.objects,
                "stored_bytes": report.stored_bytes,
                "frames": report.frames,
                "read_frames": report.read_frames,
                "read_bytes": report.read_bytes,
                "bad": [{"key": bad.key, "problem": bad.problem} for bad in report.bad],
            }
            for report in reports
        ],
    }
