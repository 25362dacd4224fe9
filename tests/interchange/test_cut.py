"""Rectangles have each element once, whatever the strides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.interchange import cut as module
from ckptd.interchange.cut import cut, span_of, strides_of, tiles


@given(st.data(), st.lists(st.integers(0, 7), max_size=4), st.integers(1, 60))
def test_each_element_once(data: st.DataObject, sizes: list[int], limit: int) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    strides = [0] * len(sizes)
    for dim, stride in zip(order, strides_of([sizes[dim] for dim in order]), strict=True):
        strides[dim] = stride * data.draw(st.integers(1, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", 2)
        for function in (cut, tiles):
            seen = np.zeros(sizes, int)
            for region in function(sizes, strides, limit):
                seen[tuple(slice(o, o + s) for o, s in zip(region.offsets, region.sizes, strict=True))] += 1
                assert region.elements <= limit
                assert function is tiles or span_of(region.sizes, strides) <= limit or region.elements == 1
            assert (seen == 1).all()


def test_row_major_ones_are_runs_in_order() -> None:
    sizes, at = (3, 4, 5), 0
    for region in cut(sizes, strides_of(sizes), 7):
        assert sum(o * s for o, s in zip(region.offsets, strides_of(sizes), strict=True)) == at
        assert span_of(region.sizes, strides_of(sizes)) == region.elements
        at += region.elements
    assert at == 60
