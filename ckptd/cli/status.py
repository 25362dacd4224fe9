"""`ckptd status`: how a job is, by everybody who can be asked, and what is wrong since when."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ckptd.cli.asking import (
    LogView,
    access_of,
    ask_coordinator,
    ask_daemon,
    find_coordinator,
    open_log_store,
    read_log,
    words_of,
)
from ckptd.cli.options import ConfigFile, StoreUrl
from ckptd.cli.progress import progress
from ckptd.cli.words import AsJson, duration, numbers, people, plain, print_json, since
from ckptd.config import Settings, load_settings
from ckptd.errors import CkptdError
from ckptd.model.ids import check_job
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.wire import default_socket

WELL: Final = 0
NOBODY: Final = 1
TROUBLE: Final = 4


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that is wrong. ``since`` is in Unix seconds, None when nobody knows."""

    where: str
    topic: str
    what: str
    since: float | None


@dataclass(slots=True)
class Answers:
    """What was learned, and why the rest was not. An error is empty when there was an answer, or nothing to ask."""

    job: str = ""
    daemon: pb.DaemonStatus | None = None
    daemon_error: str = ""
    daemon_named: bool = False
    address: str = ""
    coordinator: pb.StatusReply | None = None
    coordinator_error: str = ""
    over: str = ""  # why the job is done, and so nobody coordinates it
    log: LogView | None = None
    log_error: str = ""

    def concerns(self) -> list[Concern]:
        """All that is wrong, each once."""
        return sorted(dict.fromkeys(self._concerns()), key=lambda concern: (concern.since or 0.0, concern.where))

    def _concerns(self) -> Iterator[Concern]:
        if self.coordinator is not None:
            yield from (_concern("coordinator", trouble) for trouble in self.coordinator.troubles)
            for node in self.coordinator.nodes:
                yield from (_concern(f"node {node.node}", trouble) for trouble in node.report.troubles)
        if self.daemon is not None:
            here = f"node {self.daemon.node}"
            yield from (_concern(here, trouble) for trouble in self.daemon.troubles)
            for job in self.daemon.jobs:
                if self.job in ("", job.job):
                    yield from (_concern(here, trouble) for trouble in job.report.troubles)
        if self.coordinator_error:
            yield Concern("coordinator", "asking", self.coordinator_error, None)
        if self.log_error:
            yield Concern("store", "asking", self.log_error, None)
        if self.daemon_error and self.daemon_named:
            yield Concern("this node", "asking", self.daemon_error, None)

    def code(self) -> int:
        """The exit code."""
        if self.daemon is None and self.coordinator is None and self.log is None:
            return NOBODY
        return TROUBLE if self.concerns() else WELL


def _concern(where: str, trouble: pb.Trouble) -> Concern:
    return Concern(where, trouble.topic, trouble.what, trouble.since_unix_seconds or None)


def status(
    job: Annotated[
        str | None, typer.Option("--job", envvar="CKPTD_JOB", help="training run; default: the only one of this node's daemon")
    ] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
    coordinator: Annotated[
        str | None, typer.Option(help="host:port; default: as announced in the store, else as this node's daemon says")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="of this node's daemon; default as CKPTD_SOCKET")] = None,
    json: AsJson = False,
) -> None:
    """Say how a job is: world, nodes, snapshots on their way, newest checkpoint, and what is wrong since when.

    Asks this node's daemon, the coordinator and, if a store is named, the commit log; says which of them doesn't answer.

    Exit codes: 0 all is well; 1 nobody could be asked; 2 bad usage or settings; 4 something is wrong, or somebody who should
    answer doesn't (a daemon should if its socket is named).
    """
    settings = load_settings(config, {"store": {"url": store}, "daemon": {"socket": socket, "coordinator": coordinator}})
    if job is not None:
        check_job(job)
    with progress("asking"):
        answers = asyncio.run(ask(settings, job))
    print_json(as_json(answers)) if json else show(answers, people())
    sys.stdout.flush()
    # A store that hangs holds a thread that a normal exit would wait for.
    os._exit(answers.code())


async def ask(settings: Settings, job: str | None) -> Answers:
    """Ask everybody. Raises ConfigError and StoreConfigError; who is away is no error."""
    answers, access = Answers(job or ""), access_of(settings)
    answers.daemon_named = settings.daemon.socket is not None or "CKPTD_SOCKET" in os.environ
    try:
        answers.daemon = await asyncio.to_thread(ask_daemon, settings.daemon.socket or default_socket())
    except CkptdError as error:
        answers.daemon_error = words_of(error)
    known = [] if answers.daemon is None else list(answers.daemon.jobs)
    if not answers.job and len(known) == 1:
        answers.job = known[0].job
    if not answers.job:
        return answers
    address = settings.daemon.coordinator or next((found.coordinator for found in known if found.job == answers.job), "")
    store = open_log_store(settings)
    if store is not None:
        try:
            hint = await find_coordinator(store, answers.job)
            address = settings.daemon.coordinator or (address if hint is None else hint.address)
            answers.over = "" if hint is None else hint.over
            answers.log = await read_log(store, answers.job)
        except CkptdError as error:
            answers.log_error = words_of(error)
    answers.address = address
    if not address:
        answers.coordinator_error = f"no coordinator has announced itself; start `ckptd coordinator --job {answers.job}`"
        if store is None:
            answers.coordinator_error = "its address is not known; say --store, or --coordinator host:port"
        return answers
    try:
        answers.coordinator = await ask_coordinator(access, address, answers.job)
        answers.over = ""
    except CkptdError as error:
        answers.coordinator_error = "" if answers.over else words_of(error)
    return answers


def as_json(answers: Answers) -> dict[str, Any]:
    """For programs."""
    log = answers.log
    newest = log.newest if log is not None else None
    manifest = log.manifest if log is not None else None
    return {
        "job": answers.job,
        "exit_code": answers.code(),
        "troubles": [asdict(concern) for concern in answers.concerns()],
        "coordinator": plain(answers.coordinator) if answers.coordinator is not None else None,
        "coordinator_address": answers.address,
        "coordinator_error": answers.coordinator_error,
        "over": answers.over,
        "daemon": plain(answers.daemon) if answers.daemon is not None else None,
        "daemon_error": answers.daemon_error,
        "log": None
        if log is None
        else {
            "store": log.store,
            "tail": log.state.tail,
            "newest": None
            if newest is None
            else {
                "seq": newest.seq,
                "step": newest.step,
                "age_seconds": log.age_seconds,
                "raw_bytes": manifest.raw_bytes if manifest is not None else None,
                "stored_bytes": manifest.stored_bytes if manifest is not None else None,
            },
        },
        "log_error": answers.log_error,
    }


def show(answers: Answers, console: Console) -> None:
    """For people."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, markup=False, style=style)

    if answers.coordinator is not None:
        _show_job(answers.coordinator, console)
    elif answers.job:
        say(f"job {answers.job}" + (f": done ({answers.over})" if answers.over else ""))
    if (line := _newest(answers)) is not None:
        say(line)
    if answers.daemon is not None:
        _show_daemon(answers.daemon, console)
    elif not answers.daemon_named:
        say("this node: no daemon answers here")
    concerns = answers.concerns()
    for concern in concerns:
        when = f" {since(concern.since)}" if concern.since is not None else ""
        topic = "" if concern.topic == "asking" else f"{concern.topic}: "
        say(f"TROUBLE{when}, {concern.where}: {topic}{concern.what}", "bold red")
    if answers.code() == NOBODY and not concerns:
        say(f"nobody could be asked: {answers.daemon_error}", "bold red")
    elif not concerns:
        say("no trouble is known")


def _show_job(reply: pb.StatusReply, console: Console) -> None:
    world = reply.world
    head = f"job {reply.job}: {reply.phase}" + (f" ({reply.why})" if reply.why else "")
    console.print(head, markup=False, style="bold")
    if reply.HasField("world"):
        name = f"generation {world.generation.epoch}-{world.generation.n}"
        pace = f", {world.step_seconds:.2g} s a step" if world.step_seconds else ""
        size = f"{world.world_size} ranks on {len(world.nodes)} nodes for {duration(world.seconds)}"
        console.print(f"{name}: {size}, step {world.furthest_step}{pace}", markup=False)
    if world.every_steps:
        ahead = max(0, world.furthest_step + 1 - world.first_snapshot)
        upcoming = world.first_snapshot + -(-ahead // world.every_steps) * world.every_steps
        console.print(f"schedule: a snapshot every {world.every_steps} steps, the next one at step {upcoming}", markup=False)
    for snapshot in reply.snapshots:
        far = f"{snapshot.sealed} of {world.world_size} ranks staged, {snapshot.uploaded} uploaded"
        console.print(f"on its way: step {snapshot.step} for {duration(snapshot.seconds)}: {far}", markup=False)
    for wait in reply.waiting:
        if wait.topic != "snapshot":
            console.print(f"waiting for {duration(wait.seconds)}: {wait.topic}: {wait.reason}", markup=False)
    if reply.nodes:
        console.print(_nodes(reply))


def _nodes(reply: pb.StatusReply) -> Table:
    table = Table("node", "state", "ranks", "step", "free slots", "newest durable here", "uploading")
    for node in reply.nodes:
        report, newest = node.report, node.report.newest
        durable = ""
        if report.HasField("newest"):
            durable = f"step {newest.step}, {decimal(newest.bytes)} in {duration(newest.staged_to_durable_seconds)}"
            durable += f", training stood still {1000 * newest.stall_seconds:.1f} ms"
        uploads = "; ".join(_upload(upload) for upload in report.uploads)
        quiet = f" for {duration(node.silent_seconds)}" if node.state in ("blind", "silent") else ""
        training = bool(node.ranks)
        table.add_row(
            node.node,
            node.state + quiet,
            numbers(node.ranks),
            str(node.step) if training else "",
            str(node.free_slots) if training else "",
            durable,
            uploads,
        )
    return table


def _upload(upload: pb.Upload) -> str:
    rate = f", {decimal(int(upload.done_bytes / upload.seconds))}/s" if upload.done_bytes and upload.seconds else ""
    return f"step {upload.step}: {decimal(upload.done_bytes)} of {decimal(upload.total_bytes)}{rate}"


def _newest(answers: Answers) -> str | None:
    log, reply = answers.log, answers.coordinator
    if log is not None and log.newest is not None:
        size = ""
        if log.manifest is not None:
            size = f", {decimal(log.manifest.raw_bytes)} ({decimal(log.manifest.stored_bytes)} stored)"
        return f"newest checkpoint: step {log.newest.step}, record {log.newest.seq}, {duration(log.age_seconds)} old{size}"
    if reply is not None and reply.HasField("newest"):
        age = f", {duration(reply.newest.seconds)} old" if reply.newest.seconds else ""
        return f"newest checkpoint: step {reply.newest.step}, record {reply.newest.seq}{age}"
    return "no checkpoint is committed yet" if log is not None or reply is not None else None


def _show_daemon(daemon: pb.DaemonStatus, console: Console) -> None:
    memory = f"{decimal(daemon.arena_bytes)} of shared memory"
    head = f"this node: daemon of {daemon.node}, up for {duration(daemon.seconds)}, {memory}, store {daemon.store}"
    console.print(head, markup=False)
    for job in daemon.jobs:
        steps = f" at step {max(rank.step for rank in job.ranks)}" if job.ranks else ""
        ranks = f"rank {numbers([rank.rank for rank in job.ranks])}{steps}" if job.ranks else "no rank"
        link = f"coordinator {job.coordinator}" if job.connected else "no coordinator"
        uploads = "".join(f"; uploading {_upload(upload)}" for upload in job.report.uploads)
        console.print(f"  job {job.job}: {ranks}, {link}{uploads}", markup=False)
