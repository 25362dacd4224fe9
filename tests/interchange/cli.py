"""`ckptd`, run in this process: starting Python anew for each of hundreds of runs would take most of the time."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from ckptd.cli.app import main


@dataclass(frozen=True, slots=True)
class Done:
    """What it has printed."""

    stdout: str
    stderr: str


def ckptd(*words: object, code: int = 0) -> Done:
    """Run it to its end; asserts its exit code. What would be a traceback is raised."""
    out, err = io.StringIO(), io.StringIO()
    got: object = 0
    words_given = mock.patch.object(sys, "argv", ["ckptd", *map(str, words)])
    with redirect_stdout(out), redirect_stderr(err), mock.patch("ckptd.cli.app.setup_logging"), words_given:
        try:
            main()
        except SystemExit as end:
            got = end.code or 0
    assert got == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())
