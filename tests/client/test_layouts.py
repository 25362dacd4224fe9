"""Any layout to any layout: see chaos/layouts.py, which `make long ARGS=layouts` runs for longer."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chaos import layouts, placed
from chaos.scene import ChaosError
from ckptd_client import placement


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ckptd-layouts-", dir="/dev/shm"))  # a disk would wait for each object
    yield made
    shutil.rmtree(made)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("seed", range(4))
def test_every_element_is_right_whatever_layout_saved_and_loads_it(directory: Path, seed: int) -> None:
    said: list[str] = []
    layouts.run(seed, directory, said.append, 500)
    assert said[-1].startswith("500 pairs")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_wrong_order_of_cuts_is_found(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's own `compute_local_shape_and_global_offset` got wrong: the check would see it."""
    right = placement.cutting_order
    monkeypatch.setattr(
        placement, "cutting_order", lambda cuts, shape: {dim: sorted(order) for dim, order in right(cuts, shape).items()}
    )
    with pytest.raises(Exception, match=r"wrong|local shape"):
        layouts.run(1, directory, lambda _: None, 500)


def test_an_element_that_differs_is_found() -> None:
    draw = random.Random(1)
    for dtype in placed.DTYPES:
        one = placed.noise(draw, dtype, (3, 2))
        other = torch.empty_like(one)
        placed.spoil(other, one)
        assert placed.same_bits(one, one.clone()) and not placed.same_bits(one, other), dtype


def test_a_state_that_was_not_loaded_is_found() -> None:
    draw = random.Random(3)
    one = layouts.Round(draw, 0)
    groups = layouts._draw_groups(draw, one.after, one.whole)
    states = one.states(one.after, groups, filled=False)
    with pytest.raises(ChaosError, match="wrong"):
        for rank, parts in enumerate(states):
            one._check(rank, groups, parts, groups)
