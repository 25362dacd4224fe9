"""The exponent of growth is that of the power law it was made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.curves import exponent


@given(st.floats(-2.0, 3.0), st.floats(0.01, 100.0), st.lists(st.floats(0.1, 1000.0), min_size=2, max_size=8, unique_by=round))
def test_the_exponent_of_a_power_law(k: float, c: float, xs: list[float]) -> None:
    assert exponent([(x, c * x**k) for x in xs]) == pytest.approx(k, abs=1e-6)


def test_a_constant_part_makes_growth_slower_than_linear() -> None:
    assert 0 < exponent([(1, 11), (10, 20), (100, 110)]) < 1


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)], [(1.0, 0.0), (2.0, 1.0)]])
def test_what_has_no_slope_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="points="):
        exponent(points)
