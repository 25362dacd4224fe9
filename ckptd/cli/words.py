"""Figures and messages in words, and messages as plain values for `--json`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from google.protobuf.message import Message
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="for programs: one JSON document on stdout")]


_NAMED: Final = 3


def records(numbers: Sequence[int]) -> str:
    """Log records by their numbers, the last few of them."""
    few, left = ", ".join(map(str, numbers[-_NAMED:])), len(numbers) - _NAMED
    return f"record {few}" if len(numbers) == 1 else f"records {few}" + (f" and {left} more" if left > 0 else "")


def people() -> Console:
    """Where people read; not folded to 80 columns where it goes into a file or another program."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def print_json(value: object) -> None:
    """One document, keys in our order."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def plain(message: Message) -> dict[str, Any]:
    """A message as a dict of all its fields; None for an absent message in it. (protobuf's own JSON quotes big numbers.)"""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            found[field.name] = list(value) if field.is_repeated else value
        elif field.is_repeated:
            found[field.name] = [plain(part) for part in value]
        else:
            found[field.name] = plain(value) if message.HasField(field.name) else None
    return found


def duration(seconds: float) -> str:
    """As people say it: "3.2 s", "45 s", "12 min", "3 h", "5 days"."""
    for least, unit, word in ((172_800, 86_400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def since(unix_seconds: float, now: float | None = None) -> str:
    """ "since 14:03:10 (2 min)", with the date when it was another day."""
    now = time.time() if now is None else now
    then, today = time.localtime(unix_seconds), time.localtime(now)
    words = "%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d %H:%M:%S"
    return f"since {time.strftime(words, then)} ({duration(max(0.0, now - unix_seconds))})"


def numbers(values: Sequence[int]) -> str:
    """ "0-3,7"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
