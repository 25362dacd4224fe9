"""Progress is shown on what takes long, as a bar or as lines, and on nothing else."""

from __future__ import annotations

import io

from rich.console import Console

from ckptd.cli.progress import progress
from tests.waiting import eventually_sync


def test_lines_where_no_terminal_is() -> None:
    text = io.StringIO()
    with progress("verifying", 4, console=Console(file=text), quiet_seconds=0.01, line_seconds=0.01) as shown:
        eventually_sync(lambda: "verifying: 0 of 4 after 0 s" in text.getvalue(), "a line at the beginning")
        shown.advance()
        eventually_sync(lambda: "verifying: 1 of 4 after" in text.getvalue(), "a line that has moved on")
        shown.total = 8
        eventually_sync(lambda: "verifying: 1 of 8 after" in text.getvalue(), "a line with the new total")


def test_bytes_in_words() -> None:
    text = io.StringIO()
    with progress("reading", 3_000_000, in_bytes=True, console=Console(file=text), quiet_seconds=0.01) as shown:
        shown.advance(1_500_000)
        eventually_sync(lambda: "reading: 1.5 MB of 3.0 MB after" in text.getvalue(), "megabytes")


def test_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, width=100)
    with progress("collecting", 10, console=terminal, quiet_seconds=0.01) as shown:
        shown.advance(3)
        eventually_sync(lambda: "collecting" in text.getvalue() and "3/10" in text.getvalue(), "a bar")


def test_what_is_quick_shows_nothing() -> None:
    for terminal in (False, True):
        text = io.StringIO()
        with progress("looking", 1, console=Console(file=text, force_terminal=terminal)) as shown:
            shown.advance()
        assert text.getvalue() == ""
