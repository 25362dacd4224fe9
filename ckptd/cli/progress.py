"""Progress of whatever takes over two seconds: a bar on a terminal, a plain line now and then elsewhere. On stderr, always.

What is over sooner shows nothing, so that a quick command's output stays as it is.

    with progress("verifying", total=len(frames)) as shown:
        for frame in frames:
            verify(frame)
            shown.advance()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import ProgressColumn as Column

QUIET_SECONDS: Final = 2.0
LINE_SECONDS: Final = 10.0  # between two lines where nobody looks at a terminal


class Shown:
    """How far it is. May be advanced from any thread; costs nothing worth counting."""

    def __init__(self, what: str, total: int | None, in_bytes: bool) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._in_bytes = in_bytes
        self._lock = threading.Lock()

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        with self._lock:
            self.done += count

    def line(self, seconds: float) -> str:
        """In words."""
        done, total = (decimal(n) if self._in_bytes else str(n) for n in (self.done, self.total or 0))
        far = f"{done} of {total}" if self.total else done
        return f"{self.what}: {far if self.total or self.done else '…'} after {seconds:.0f} s"


@contextmanager
def progress(
    what: str,
    total: int | None = None,
    *,
    in_bytes: bool = False,
    console: Console | None = None,
    quiet_seconds: float = QUIET_SECONDS,
    line_seconds: float = LINE_SECONDS,
) -> Iterator[Shown]:
    """Show how far the block is, once it has taken ``quiet_seconds``. ``total`` (it may be set later) is in things or bytes."""
    console = console or Console(stderr=True)
    shown = Shown(what, total, in_bytes)
    over = threading.Event()
    show = _bar if console.is_terminal else _lines
    thread = threading.Thread(
        target=show, args=(shown, console, over, quiet_seconds, line_seconds, in_bytes), name="ckptd-progress", daemon=True
    )
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join()


def _bar(shown: Shown, console: Console, over: threading.Event, quiet: float, _line: float, in_bytes: bool) -> None:
    if over.wait(quiet):
        return
    amount: Column = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(shown.what, total=shown.total, completed=shown.done)
        while not over.wait(0.1):
            bar.update(task, total=shown.total, completed=shown.done)


def _lines(shown: Shown, console: Console, over: threading.Event, quiet: float, line: float, _in_bytes: bool) -> None:
    began, wait = time.monotonic(), quiet
    while not over.wait(wait):
        console.print(shown.line(time.monotonic() - began), markup=False, highlight=False, soft_wrap=True)
        wait = line
