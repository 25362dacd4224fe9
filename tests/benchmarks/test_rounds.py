"""Every contender has as many turns as the others, and each is first as often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rounds import Rounds, interleave, slowest


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 8))
def test_turns_rotate_and_the_rounds_to_warm_up_dont_count(contenders: int, warm_up: int, rounds: int) -> None:
    calls: list[tuple[str, int]] = []

    def contender(name: str):  # type: ignore[no-untyped-def]
        def turn(number: int) -> float:
            calls.append((name, number))
            return float(number)

        return turn

    names = [f"c{i}" for i in range(contenders)]
    between: list[int] = []
    found = interleave(
        {name: contender(name) for name in names}, rounds, warm_up=warm_up, between=lambda: between.append(len(calls))
    )
    assert between == list(range(len(calls)))
    for number in range(warm_up + rounds):
        turn = [name for name, at in calls if at == number]
        assert sorted(turn) == names and turn[0] == names[number % contenders]
    assert found.first == dict.fromkeys(names, 0.0)
    assert found.raw == {name: [float(number) for number in range(warm_up, warm_up + rounds)] for name in names}


def test_there_is_always_a_first_save_apart() -> None:
    with pytest.raises(ValueError, match="warm_up=0"):
        interleave({"x": float}, 3, warm_up=0)


def test_a_round_counts_as_its_slowest_rank_needed() -> None:
    ranks = [Rounds({"x": 1.0}, {"x": [1.0, 5.0]}), Rounds({"x": 2.0}, {"x": [3.0, 4.0]})]
    assert slowest(ranks) == Rounds({"x": 2.0}, {"x": [3.0, 5.0]})
    assert slowest(ranks).map(lambda seconds: 10 / seconds).raw == {"x": [10 / 3, 2.0]}
