"""The optimizer's moments are dropped when a checkpoint is restored; its learning rate and all else are right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ckptd_client import restore
from tests.demo.small_gpt import run

_load_optimizer = restore._load_optimizer


def _without_moments(optimizer: Any, parameters: Any, state: dict[str, Any]) -> None:
    assert state["state"]
    _load_optimizer(optimizer, parameters, {**state, "state": {}})


if __name__ == "__main__":
    restore._load_optimizer = _without_moments
    run()
