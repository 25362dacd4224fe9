"""What a figure's result says: which way its ratios go, when a bar holds, what its file has."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.result import at_least, at_most, either, from_rounds, read
from benchmarks.rounds import Rounds
from benchmarks.table import markdown

_FIELDS = {
    "figure", "unit", "ckptd", "limit", "peers", "ratio_to_limit", "ratio_to_best_peer", "rounds", "machine", "bars",
    "what", "better", "first", "raw", "notes",
}  # fmt: skip
_RAW = {"ckptd": [2.0, 9.0, 1.0], "limit": [1.0, 4.0, 0.5], "slow": [8.0, 8.0, 8.0], "fast": [4.0, 4.0, 4.0]}
_ROUNDS = Rounds({name: values[0] for name, values in _RAW.items()}, _RAW)


def test_values_are_medians_and_ratios_are_ours_over_the_others() -> None:
    seconds = from_rounds("x", "what", "s", _ROUNDS, "limit")
    assert (seconds.ckptd, seconds.limit, seconds.peers, seconds.rounds) == (2.0, 1.0, {"slow": 8.0, "fast": 4.0}, 3)
    assert seconds.ratio_to_limit == 2.0
    assert seconds.ratio_to_best_peer == 0.5  # the best is the one that needs least


def test_the_best_peer_of_a_rate_is_the_highest() -> None:
    assert from_rounds("x", "what", "GB/s", _ROUNDS, 4.0, better="higher").ratio_to_best_peer == 0.25


def test_no_limit_and_no_peer_give_no_ratio() -> None:
    result = from_rounds("x", "what", "s", Rounds({}, {"ckptd": [1.0]}), None)
    assert (result.ratio_to_limit, result.ratio_to_best_peer) == (None, None)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_bar_holds_up_to_its_bound(value: float, bound: float) -> None:
    assert at_most("x", value, bound).holds == (value <= bound)
    assert at_least("x", value, bound).holds == (value >= bound)


def test_not_a_number_holds_no_bar() -> None:
    assert not at_most("x", math.nan, 1.0).holds
    assert not at_least("x", math.nan, 1.0).holds


def test_one_of_two_bars_is_enough_and_is_shown() -> None:
    missed, held = at_most("a", 2.0, 1.0), at_most("b", 1.0, 1.0)
    assert either(missed, held).holds and either(held, missed).holds
    shown = either(missed, held)
    assert (shown.value, shown.bound) == (1.0, 1.0) and "a ≤ 1" in shown.name and "b ≤" in shown.name
    assert not either(missed, at_most("c", 3.0, 1.0)).holds


def test_the_file_has_every_round_and_can_be_read_back(tmp_path: Path) -> None:
    result = from_rounds("x", "what", "s", _ROUNDS, "limit", notes={"bytes": 5}).holding(at_most("÷ limit", 2.0, 1.5))
    path = result.save(tmp_path)
    values = json.loads(path.read_text())
    assert path.name == "x.json" and values.keys() == _FIELDS
    assert values["bars"] == [{"name": "÷ limit ≤", "value": 2.0, "bound": 1.5, "holds": False}]
    assert values["raw"] == _RAW and values["first"]["ckptd"] == 2.0
    assert read(path) == result and read(path).missed == result.missed != []
    assert "MISSED" in markdown([result]) and "4" in markdown([result])


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        from_rounds("x", "what", "s", Rounds({}, {"ckptd": [math.inf]}), None).save(tmp_path)
