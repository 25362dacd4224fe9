"""The exit code of `make bench`: a missed bar and a figure that fails are told, and the others are taken all the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES
from benchmarks.result import Bar, at_most, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.run import take, verdict
from chaos.tools import ROOT

# A figure as its file has it, but for the directory of its results.
_FIGURE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import benchmarks.result
from benchmarks.result import at_most, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.run import alone
benchmarks.result.Result.save.__defaults__ = (Path({directory!r}),)

def measure(rounds):
    {before}
    found = from_rounds("x", "what", "s", Rounds({{}}, {{"ckptd": [1.0] * rounds}}), None)
    return [found.holding(at_most("it", 1.0, {bound}))]

alone(measure, rounds=3)
"""


def _result(*bars: Bar):  # type: ignore[no-untyped-def]
    return from_rounds("x", "what", "s", Rounds({}, {"ckptd": [1.0]}), None).holding(*bars)


def _command(directory: Path, *, bound: float = 1.0, before: str = "") -> list[str]:
    return [sys.executable, "-c", _FIGURE.format(root=str(ROOT), directory=str(directory), bound=bound, before=before)]


def test_all_bars_held_is_0() -> None:
    assert verdict([_result(at_most("x", 1.0, 1.0)), _result()], []) == 0


def test_a_missed_bar_is_1_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict([_result(at_most("the ratio", 1.5, 1.25))], []) == 1
    assert "missed: x: the ratio ≤ 1.25, but it is 1.5" in capsys.readouterr().err


def test_a_failed_figure_is_1_and_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict([_result()], ["durable"]) == 1
    shown = capsys.readouterr()
    assert "failed: durable" in shown.err and "x" in shown.out


@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_a_figure_is_taken_whether_its_bars_hold_or_not(tmp_path: Path, bound: float) -> None:
    taken = take(_command(tmp_path, bound=bound), tmp_path)
    assert taken is not None
    (result,) = taken
    assert (result.rounds, result.missed == []) == (3, bound == 1.0)
    assert result.machine["cores"] and "busy_cores_before" in result.machine


@pytest.mark.parametrize("end", ["raise RuntimeError('broken')", "import os; os.kill(os.getpid(), 9)"])
def test_a_figure_that_ends_early_has_no_result(tmp_path: Path, end: str) -> None:
    assert take(_command(tmp_path, before=end), tmp_path) is None


def test_an_older_result_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    _result().save(tmp_path)
    assert take([sys.executable, "-c", ""], tmp_path) is None


@pytest.mark.parametrize("name", FIGURES)
def test_every_registered_figure_has_a_file(name: str) -> None:
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None
