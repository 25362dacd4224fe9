"""`ckptd demo`: see nodes die and training go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

import ckptd
from ckptd.cli.asking import access_of, ask_coordinator
from ckptd.cli.options import ConfigFile, StoreUrl, reading_store
from ckptd.config import Settings, load_settings
from ckptd.demo.cluster import memory_prefix
from ckptd.demo.process import kill_all
from ckptd.demo.story import Options, Report, Story, run_reference
from ckptd.demo.view import draw
from ckptd.demo.watch import Watcher
from ckptd.errors import CkptdError, ConfigError
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Store
from ckptd.store.open import check_store

_MARK = "CKPTD_DEMO"  # in the environment of everything that the demo starts


def demo(
    store: StoreUrl = None,
    config: ConfigFile = None,
    nodes: Annotated[int, typer.Option(help="nodes at first", min=2, max=5)] = 3,
    steps: Annotated[int, typer.Option(help="steps of training", min=20)] = 300,
    every: Annotated[int, typer.Option(help="a checkpoint every so many steps", min=2)] = 5,
    pace: Annotated[float, typer.Option(help="least seconds a step, so that nodes have time to come back", min=0)] = 0.15,
    script: Annotated[
        Path | None, typer.Option(help="another training script with the options of examples/train_gpt.py")
    ] = None,
    rejoin: Annotated[bool, typer.Option(help="bring killed nodes back")] = True,
    plain: Annotated[bool, typer.Option("--plain", help="lines only, also on a terminal")] = False,
) -> None:
    """Train on three nodes, kill one, take it back, kill two, take them back; compare with an undisturbed run."""
    console = Console(highlight=False, soft_wrap=True)  # a path broken over two lines can't be copied
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_by_signal)  # as with Ctrl-C, what was started is ended
    if config is not None:
        os.environ["CKPTD_CONFIG"] = str(config.resolve())  # for the servers that the demo starts, too

    def now() -> float:
        return time.monotonic() - begun

    def say(text: str) -> None:
        console.print(f"[{now():6.1f} s] {text}", markup=False)

    directory = Path(tempfile.mkdtemp(prefix="ckptd-demo-"))
    os.environ[_MARK] = str(directory)
    try:
        settings = load_settings(config, {"store": {"url": store or str(directory / "store")}})
        checkpoints = reading_store(settings)
        asyncio.run(check_store(checkpoints))
        kill_after = 2 * every + every // 2
        options = Options(settings.store.url, script or _example(), directory, nodes, steps, every, kill_after, pace, rejoin)
        say(f"store {settings.store.url}, logs in {directory}")
        say("an undisturbed run first: one process, no daemon, same seed")
        reference = run_reference(options)
        say(f"undisturbed: loss {reference[1]:.4f} at step 1, {reference[steps]:.4f} at step {steps}")
        if console.is_terminal and not plain:
            report = _tell_live(console, options, checkpoints, settings, reference, now)
        else:
            report = Story(options, checkpoints, say).tell(reference)
        _print(console, report, options)
        raise typer.Exit(1 if report.problems else 0)
    finally:
        kill_all(_MARK, str(directory))  # an interrupt may come between a start and whoever would end it
        for left in Path("/dev/shm").glob(f"{memory_prefix(directory)}*"):
            shutil.rmtree(left, ignore_errors=True)


def _tell_live(
    console: Console, options: Options, store: Store, settings: Settings, reference: dict[int, float], now: Callable[[], float]
) -> Report:
    """The story in a view that is drawn anew several times a second. It stays on the screen as it was in the end."""
    access = access_of(settings)
    address = ""

    def ask() -> pb.StatusReply | None:
        nonlocal address
        said = (line for line in story.output if line.source == "coordinator" and '"in office"' in line.text)
        address = address or next((str(line.event.get("address")) for line in said), "")
        try:
            return asyncio.run(ask_coordinator(access, address, story.job)) if address else None
        except CkptdError:
            return None

    story = Story(options, store, lambda text: watcher.say(text))
    watcher = Watcher(options.names, options.total_steps, story.output, ask, now)
    with watcher, Live(get_renderable=lambda: draw(watcher.picture(), console.height), console=console, refresh_per_second=4):
        return story.tell(reference)


def _end_by_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _example() -> Path:
    """The example training script: beside the package when installed, in the checkout otherwise."""
    package = Path(ckptd.__file__).parent
    for place in (package / "examples", package.parent / "examples"):
        if (place / "train_gpt.py").exists():
            return place / "train_gpt.py"
    raise ConfigError("examples/train_gpt.py is not there; name a training script with --script")


def _print(console: Console, report: Report, options: Options) -> None:
    table = Table("what", *(f"{loss.nodes} killed" for loss in report.losses))
    table.add_row("steps lost", *(str(loss.steps_lost) for loss in report.losses))
    table.add_row("seconds from SIGKILL to detection", *(f"{loss.detect_seconds:.2f}" for loss in report.losses))
    table.add_row("seconds from SIGKILL to the first new step", *(f"{loss.first_step_seconds:.2f}" for loss in report.losses))
    console.print(table)
    size = f"{report.raw_bytes:,} bytes of state, {report.stored_bytes:,} stored"
    console.print(f"{report.committed} checkpoints committed, the last {report.kept} of them kept: {size}")
    for problem in report.problems[:20]:
        console.print(f"NOT AS PROMISED: {problem}", markup=False, style="bold red")
    if not report.problems:
        total = options.total_steps
        console.print(f"all {total} steps have the loss of the undisturbed run; each world went on from the newest commit")
