"""`ckptd` as the flatness check starts it: what nobody holds any more is given back to the kernel twice a second.

Garbage in cycles piles up to megabytes until Python's collector comes to it, and freed memory stays in the heap; a leak of a
kilobyte a checkpoint can't be told from either. And with LEAK_BYTES a leak is sewn in, so many bytes a checkpoint in daemon and
coordinator, to show that the check sees it.

[LEAK_BYTES=1024] python -m chaos.measured daemon …
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from typing import Any, Final

from ckptd.cli import main
from ckptd.coordinator.engine import Engine
from ckptd.daemon.snapshots import Snapshots

TIDY_SECONDS: Final = 0.5
_leaked: list[bytearray] = []


def tidy() -> None:
    """For ever."""
    trim = ctypes.CDLL(None).malloc_trim
    while True:
        gc.collect()
        trim(0)
        threading.Event().wait(TIDY_SECONDS)


def leaking(method: Any, leak_bytes: int) -> Any:
    """The method, which forgets to forget something."""

    def call(*arguments: Any) -> Any:
        _leaked.append(bytearray(os.urandom(leak_bytes)))
        return method(*arguments)

    return call


if __name__ == "__main__":
    threading.Thread(target=tidy, name="tidy", daemon=True).start()
    if leak := int(os.environ.get("LEAK_BYTES", "0")):
        Snapshots.committed = leaking(Snapshots.committed, leak)  # type: ignore[method-assign]
        Engine.log_done = leaking(Engine.log_done, leak)  # type: ignore[method-assign]
    main()
