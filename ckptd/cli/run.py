"""`ckptd run`: the launcher, which lives in the trainer's environment as `ckptd-run`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import typer

from ckptd.errors import ConfigError


def run(context: typer.Context) -> None:
    """Launch a training script on this node (same as `ckptd-run`; see `ckptd run --help`)."""
    beside = Path(sys.executable).with_name("ckptd-run")
    program = str(beside) if beside.exists() else shutil.which("ckptd-run")
    if program is None:
        raise ConfigError("`ckptd-run` is not on PATH; install ckptd-client into the environment of your trainer")
    os.execv(program, [program, *context.args])
