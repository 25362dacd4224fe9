"""Made-up state: any layout is a partition, and any bytes but the right ones are told apart from them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chaos.content import Filler, Piece, layout, tensors


@given(seed=st.integers(0, 1000), world=st.text("ab:", max_size=3), size=st.integers(1, 9))
def test_pieces_are_a_partition(seed: int, world: str, size: int) -> None:
    whole = tensors(seed, 3000)
    seen = {tensor.name: np.zeros(tensor.shape, np.int64) for tensor in whole}
    for rank in range(size):
        for piece in layout(whole, world, size, rank):
            (row, column), (rows, columns) = piece.offsets, piece.sizes
            seen[piece.tensor.name][row : row + rows, column : column + columns] += 1
    assert all((count == 1).all() for count in seen.values())


@given(seed=st.integers(0, 1000), step=st.integers(1, 10**6), size=st.integers(1, 5), data=st.data())
def test_a_piece_is_that_part_of_the_whole(seed: int, step: int, size: int, data: st.DataObject) -> None:
    whole = tensors(seed, 3000)
    piece = data.draw(st.sampled_from(layout(whole, "w", size, 0) or [Piece(whole[0], (0, 0), (1, 1))]))
    everything = np.empty(piece.tensor.shape, piece.tensor.dtype)
    Filler(seed, Piece(piece.tensor, (0, 0), piece.tensor.shape)).fill(step, everything.reshape(-1))
    (row, column), (rows, columns) = piece.offsets, piece.sizes
    part = everything[row : row + rows, column : column + columns].reshape(-1)
    filler = Filler(seed, piece)
    assert filler.wrong(step, part) == ""
    part[data.draw(st.integers(0, part.size - 1))] ^= 1
    assert filler.wrong(step, part).startswith("1 of ")


def test_other_steps_and_other_seeds_look_different() -> None:
    for tensor in tensors(5, 3000):
        if tensor.dtype == "uint64":
            piece = Piece(tensor, (0, 0), tensor.shape)
            bytes_ = np.empty(tensor.shape[0] * tensor.shape[1], np.uint64)
            Filler(5, piece).fill(20, bytes_)
            for other in (Filler(5, piece).wrong(40, bytes_), Filler(6, piece).wrong(20, bytes_)):
                assert other.startswith(f"{bytes_.size} of {bytes_.size} elements")


def test_no_torch_in_the_stand_in() -> None:
    subprocess.run([sys.executable, "-c", "import chaos.standin, sys; assert 'torch' not in sys.modules"], check=True)
