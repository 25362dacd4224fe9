"""`ckptd demo`: see a node die and training go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import ckptd
from ckptd.cli.options import ConfigFile, StoreUrl, reading_store
from ckptd.config import load_settings
from ckptd.demo.process import kill_all
from ckptd.demo.story import Options, Report, Story, run_reference
from ckptd.errors import ConfigError
from ckptd.store.open import check_store

_MARK = "CKPTD_DEMO"  # in the environment of everything that the demo starts


def demo(
    store: StoreUrl = None,
    config: ConfigFile = None,
    steps: Annotated[int, typer.Option(help="steps of training", min=20)] = 200,
    every: Annotated[int, typer.Option(help="a checkpoint every so many steps", min=2)] = 5,
    script: Annotated[
        Path | None, typer.Option(help="another training script with the options of examples/train_gpt.py")
    ] = None,
    rejoin: Annotated[bool, typer.Option(help="bring the killed node back")] = True,
) -> None:
    """Train on two nodes, kill one, go on with the other, take the first one back, compare with an undisturbed run."""
    console = Console(highlight=False, soft_wrap=True)  # a path broken over two lines can't be copied
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_by_signal)  # as with Ctrl-C, what was started is ended
    if config is not None:
        os.environ["CKPTD_CONFIG"] = str(config.resolve())  # for the servers that the demo starts, too

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - begun:6.1f} s] {text}", markup=False)

    directory = Path(tempfile.mkdtemp(prefix="ckptd-demo-"))
    os.environ[_MARK] = str(directory)
    try:
        settings = load_settings(config, {"store": {"url": store or str(directory / "store")}})
        checkpoints = reading_store(settings)
        asyncio.run(check_store(checkpoints))
        options = Options(settings.store.url, script or _example(), directory, steps, every, 2 * every + every // 2, rejoin)
        say(f"store {settings.store.url}, logs in {directory}")
        say("an undisturbed run first: one process, no daemon, same seed")
        reference = run_reference(options)
        say(f"undisturbed: loss {reference[1]:.4f} at step 1, {reference[steps]:.4f} at step {steps}")
        report = Story(options, checkpoints, say).tell(reference)
        _print(console, report, options)
        raise typer.Exit(1 if report.problems else 0)
    finally:
        kill_all(_MARK, str(directory))  # an interrupt may come between a start and whoever would end it
        for left in Path("/dev/shm").glob(f"{directory.name}-*"):
            shutil.rmtree(left, ignore_errors=True)


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
    table = Table("what", "measured", show_header=False)
    table.add_row("steps lost", str(report.steps_lost))
    table.add_row("seconds from SIGKILL to detection", f"{report.detect_seconds:.2f}")
    table.add_row("seconds from SIGKILL to the first new step", f"{report.first_step_seconds:.2f}")
    table.add_row("checkpoints committed", str(report.checkpoints))
    table.add_row("checkpoints kept", str(report.kept))
    table.add_row("bytes of state in those kept, raw", f"{report.raw_bytes:,}")
    table.add_row("bytes stored for those kept", f"{report.stored_bytes:,}")
    console.print(table)
    for problem in report.problems[:20]:
        console.print(f"NOT AS PROMISED: {problem}", markup=False, style="bold red")
    if not report.problems:
        total = options.total_steps
        console.print(f"all {total} steps have the loss of the undisturbed run; each world went on from the newest commit")
