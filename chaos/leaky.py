"""`ckptd` with a leak sewn in, to show that the flatness check sees it: so many bytes a checkpoint, in daemon and coordinator.

LEAK_BYTES=1024 python -m chaos.leaky daemon …
"""

from __future__ import annotations

import os
from typing import Any

from ckptd.cli import main
from ckptd.coordinator.engine import Engine
from ckptd.daemon.snapshots import Snapshots

_leaked: list[bytearray] = []


def leaking(method: Any) -> Any:
    """The method, which forgets to forget something."""

    def call(*arguments: Any) -> Any:
        _leaked.append(bytearray(os.urandom(int(os.environ["LEAK_BYTES"]))))
        return method(*arguments)

    return call


if __name__ == "__main__":
    Snapshots.committed = leaking(Snapshots.committed)  # type: ignore[method-assign]
    Engine.log_done = leaking(Engine.log_done)  # type: ignore[method-assign]
    main()
