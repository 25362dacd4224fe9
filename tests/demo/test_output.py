"""Waiting for something while no process writes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ckptd.demo.process import DemoError, Output


def test_what_no_line_tells_of_is_seen(tmp_path: Path) -> None:
    """Asked at the beginning and at the deadline only, it would be missed."""
    times = itertools.count(1)
    Output(tmp_path).wait_for("the third time", lambda: next(times) == 3, 30.0)


def test_what_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="still waiting for a miracle; the logs are in "):
        Output(tmp_path).wait_for("a miracle", lambda: False, 0.1)
