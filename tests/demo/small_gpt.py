"""examples/train_gpt.py with a smaller model, in which each snapshot is waited for: steps this quick would outrun the store.

Sabotage patches `ckptd_client` and then calls `run`. The undisturbed run restores nothing, so it is not touched by that.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from ckptd_client.checkpointer import Checkpointer, Handle
from ckptd_client.errors import SaveError

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_gpt.py"
GLOBAL_BATCH = 12  # as the demo says
_step = Checkpointer.step


def _step_and_wait(self: Checkpointer, n: int) -> Handle | None:
    handle = _step(self, n)
    if handle is not None:
        try:
            handle.wait(60)
        except SaveError:
            pass  # the other node was killed meanwhile
    return handle


def run() -> None:
    """Train."""
    Checkpointer.step = _step_and_wait  # type: ignore[method-assign]
    sys.argv += ["--context", "32", "--width", "48", "--heads", "2"]
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    run()
