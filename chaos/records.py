"""What a process asks of its disk, noted below ckptd's code, and whether that order survives a power cut (PROTOCOLS 4.9).

`start` wraps os.fsync, os.link and os.replace in the process that calls it (`shim` does). Each call becomes one line,
written after the call has succeeded: "fsync PATH", "publish TEMPORARY PATH".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def start(directory: str) -> None:
    """Note everything from now on, in a file of this process's own."""
    file = os.open(Path(directory) / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    fsync, link, replace = os.fsync, os.link, os.replace

    def note(*words: object) -> None:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        note("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def noted_link(source: Any, target: Any, **options: Any) -> None:
        link(source, target, **options)
        note("publish", source, target)

    def noted_replace(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        note("publish", source, target)

    os.fsync, os.link, os.replace = noted_fsync, noted_link, noted_replace  # type: ignore[assignment]


def published(directory: Path) -> int:
    """How many objects were published, by all processes."""
    return sum(path.read_text().count("publish ") for path in directory.glob("*.log"))


def unsafe(directory: Path) -> Iterator[str]:
    """Objects that were visible before their bytes had reached the disk."""
    for path in sorted(directory.glob("*.log")):
        yield from unsynced(path.read_text().splitlines())


def unsynced(lines: Sequence[str]) -> Iterator[str]:
    """The same for one process's lines. Pure."""
    synced = set()
    for line in lines:
        kind, first, *rest = line.split(" ")
        if kind == "fsync":
            synced.add(first)
        elif kind == "publish" and first not in synced:
            yield f"D1: {rest[0]} was made visible before its bytes were on the disk"
