"""The table in the document is that of the results, and nothing else of the document changes."""

from __future__ import annotations

import pytest

from benchmarks.machine import machine
from benchmarks.result import Result, at_least, at_most, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.table import document, markdown, replaced, show
from chaos.tools import ROOT

_ROUNDS = Rounds({"ckptd": 9.0, "copy": 1.5}, {"ckptd": [2.0, 3.0, 2.5], "copy": [1.0, 1.0, 1.0]})


@pytest.fixture
def result() -> Result:
    made = from_rounds("stall", "seconds blocked", "s", _ROUNDS, "copy").holding(
        at_most("÷ copy", 2.5, 1.5), at_least("x", 2.0, 1.0)
    )
    return Result(**{name: getattr(made, name) for name in made.__slots__} | {"machine": machine()})


def test_a_row_has_the_values_their_spread_and_what_is_missed(result: Result) -> None:
    row = markdown([result]).splitlines()[-1]
    assert "| 2.5 (2–3) | 1 | - | 2.5 | - | 3 |" in row
    assert "÷ copy ≤ 1.5: 2.5 MISSED; x ≥ 1: 2 |" in row


def test_the_document_says_what_came_first_and_on_which_machine(result: Result) -> None:
    text = document([result])
    assert "First rounds: `stall` ckptd 9, copy 1.5 s." in text and f"{result.machine['cores']} cores" in text


def test_only_what_is_between_the_marks_is_replaced(result: Result) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    once = replaced(text, document([result]))
    assert replaced(once, "") == replaced(text, "") and document([result]) in once
    with pytest.raises(ValueError, match="end"):
        replaced("no marks", "x")


def test_the_screen_shows_the_same(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    show([result])
    assert "stall" in capsys.readouterr().out
