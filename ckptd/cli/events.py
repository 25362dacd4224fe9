"""`ckptd events`: what has happened to a job, from its coordinator's memory; without a living one, from the commit log."""

from __future__ import annotations

import asyncio
import json as json_lines
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import grpc
import typer
from rich.console import Console

from ckptd.cli.asking import access_of, find_coordinator, in_words, open_log_store, words_of
from ckptd.cli.options import ConfigFile, JobId, StoreUrl
from ckptd.cli.words import people
from ckptd.commit.log import CommitLog
from ckptd.config import Settings, load_settings
from ckptd.errors import CkptdError, ConfigError, UnavailableError
from ckptd.model.ids import check_job
from ckptd.model.keys import log_key
from ckptd.model.records import MAX_RECORD_BYTES, Abort, Body, Commit, Epoch, Forget, Pin, Quarantine, Retire, Unpin, decode
from ckptd.rpc.access import Access
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Store, get_small

RETRY_SECONDS: Final = 1.0
FROM_LOG: Final = 200
_ALL_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened. ``epoch`` and ``number`` are 0 for what is ours to say, and for log records."""

    at: float
    kind: str
    text: str
    epoch: int = 0
    number: int = 0


@dataclass(slots=True)
class Seen:
    """The last event that was shown."""

    epoch: int = 0
    number: int = 0


def events(
    job: JobId,
    store: StoreUrl = None,
    config: ConfigFile = None,
    coordinator: Annotated[str | None, typer.Option(help="host:port; default: as announced in the store")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until interrupted, also over a coordinator's end")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="for programs: one JSON object a line")] = False,
) -> None:
    """Tell what has happened to a job: worlds, nodes lost and back, snapshots, restores, troubles.

    The coordinator remembers the last 4096 events of its reign; what was missed is said. Without a living coordinator the last
    records of the commit log are told.

    Exit codes: 0 told; 1 neither coordinator nor log could be asked; 2 bad usage or settings.
    """
    check_job(job)
    settings = load_settings(config, {"store": {"url": store}, "daemon": {"coordinator": coordinator}})
    if not settings.store.url and not settings.daemon.coordinator:
        raise ConfigError("whom to ask? say --store URL, or --coordinator host:port")
    console = people()
    try:
        asyncio.run(_tell(settings, job, follow, lambda line: _print(console, line, json)))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _print(console: Console, line: Line, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json_lines.dumps(asdict(line)) + "\n")
        sys.stdout.flush()
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.at))
    bad = line.kind in (
        "lost",
        "regroup",
        "aborted",
        "restore failed",
        "quarantined",
        "trouble",
        "withheld",
        "stopped",
        "missed",
    )
    console.print(f"{when}  {line.kind:<14} {line.text}", markup=False, style="red" if bad else None)


async def _tell(settings: Settings, job: str, follow: bool, say: Callable[[Line], None]) -> None:
    access, store, seen, away = access_of(settings), open_log_store(settings), Seen(), ""
    over = ""
    while True:
        try:
            hint = await find_coordinator(store, job) if store is not None else None
            address = settings.daemon.coordinator or ("" if hint is None else hint.address)
            over = "" if hint is None else hint.over
            if not address:
                raise UnavailableError("no coordinator has announced itself")
            async for line in _from_coordinator(access, address, job, seen, follow):
                if away and line.epoch:
                    say(Line(time.time(), "back", f"the coordinator at {address} answers"))
                    away = ""
                say(line)
            if not follow:
                return
            reason = "the coordinator ended"
        except CkptdError as error:
            reason = f"the job is done ({over})" if over else words_of(error)
            if not follow:
                await _from_log_instead(store, job, reason, say)
                return
            if over:
                say(Line(time.time(), "done", over))
                return
        if not away:
            away = reason
            say(Line(time.time(), "away", f"{reason}; waiting for it"))
        await asyncio.sleep(RETRY_SECONDS)


async def _from_coordinator(access: Access, address: str, job: str, seen: Seen, follow: bool) -> AsyncIterator[Line]:
    """Raises UnavailableError when it can't be asked, or breaks off."""
    async with access.to(address) as (_, stub):
        request = pb.EventsRequest(job=job, epoch=seen.epoch, after=seen.number, follow=follow)
        try:
            async for event in stub.Events(request, timeout=None if follow else _ALL_SECONDS):
                if seen.epoch and event.epoch != seen.epoch:
                    text = f"another coordinator took office; what followed event {seen.number} of epoch {seen.epoch} is lost"
                    yield Line(event.unix_seconds, "missed", f"{text} but for what is in the commit log")
                if event.missed:
                    yield Line(event.unix_seconds, "missed", f"{event.missed} events before this are no longer remembered")
                seen.epoch, seen.number = event.epoch, event.number
                yield Line(event.unix_seconds, event.kind, event.text, event.epoch, event.number)
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"no answer from the coordinator at {address}: {in_words(error)}") from error


async def _from_log_instead(store: Store | None, job: str, reason: str, say: Callable[[Line], None]) -> None:
    """The last records of the log. Raises UnavailableError when there is no store to ask, and what the log raises."""
    if store is None:
        raise UnavailableError(f"{reason}; say --store URL to read the commit log instead")
    say(Line(time.time(), "away", f"{reason}; from the commit log"))
    tail = (await CommitLog(store, job).load()).tail
    for seq in range(max(0, tail - FROM_LOG + 1), tail + 1):
        key = log_key(job, seq)
        record = decode(seq, await get_small(store, key, MAX_RECORD_BYTES))
        kind, text = _in_words(record.body)
        say(Line((await store.info(key)).modified_seconds, kind, f"{text} (record {seq})"))


def _in_words(body: Body) -> tuple[str, str]:
    match body:
        case Epoch(number):
            return "office", f"a coordinator took office, epoch {number}"
        case Commit(attempt):
            snapshot = attempt.snapshot
            return "committed", f"step {snapshot.step} of generation {snapshot.generation}"
        case Abort(attempt):
            return "aborted", f"step {attempt.snapshot.step} of generation {attempt.snapshot.generation}"
        case Retire(n):
            return "retired", f"record {n}"
        case Quarantine(n, reason):
            return "quarantined", f"record {n}: {reason}"
        case Pin(n, who):
            return "pinned", f"record {n} by {who}"
        case Unpin(n, who):
            return "unpinned", f"record {n} by {who}"
        case Forget(before):
            return "forgotten", f"what was over before step {before.step} of generation {before.generation}"
