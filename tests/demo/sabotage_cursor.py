"""The position in the stream of samples is one global batch too far when a checkpoint is restored."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ckptd_client.stream import Stream
from tests.demo.small_gpt import GLOBAL_BATCH, run

_restore = Stream.restore


def _one_batch_too_far(self: Stream, state: Mapping[str, Any]) -> None:
    _restore(self, {**state, "position": state["position"] + GLOBAL_BATCH})


if __name__ == "__main__":
    Stream.restore = _one_batch_too_far  # type: ignore[method-assign]
    run()
