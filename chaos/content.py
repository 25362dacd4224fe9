"""State whose every byte says what it is: a function of (seed, tensor, step, element).

So whoever gets bytes back knows at once whether they are those of the step that was promised, all of them, each in its place:
a torn, mixed, stale or misplaced restore can't look right. Layouts are random, too: each world cuts each tensor by rows or by
columns into pieces of random size, some of them empty.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cells = npt.NDArray[np.uint8] | npt.NDArray[np.uint64]
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplication by it is a bijection: no two words of a tensor are alike


@dataclass(frozen=True, slots=True)
class Tensor:
    """A global tensor, "uint64" or "uint8"."""

    name: str
    dtype: str
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of one."""

    tensor: Tensor
    offsets: tuple[int, int]
    sizes: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.sizes[0] * self.sizes[1] * (8 if self.tensor.dtype == "uint64" else 1)


def tensors(seed: int, total_bytes: int) -> list[Tensor]:
    """Odd shapes that make up about ``total_bytes`` (at least a few KiB), most of it in words."""
    rng = random.Random(f"tensors {seed}")
    found = [
        Tensor("model.odd", "uint8", (rng.randrange(1, 40), rng.randrange(1, 90))),
        Tensor("model.row", "uint64", (1, rng.randrange(2, 99))),
        Tensor("model.bytes", "uint8", (rng.randrange(30, 70), max(7, total_bytes // 500))),
    ]
    for number, share in enumerate((0.5, 0.25, 0.15)):
        columns = rng.randrange(17, 333)
        found.append(Tensor(f"model.{number}", "uint64", (max(1, int(share * total_bytes / 8 / columns)), columns)))
    return found


def layout(whole: list[Tensor], world: str, world_size: int, rank: int) -> list[Piece]:
    """What ``rank`` holds; ranks of the same ``world`` (a name) cut alike, so their pieces together are the whole."""
    rng = random.Random(f"layout {world} {world_size}")
    mine = []
    for tensor in whole:
        by = rng.randrange(2)
        cuts = [0, *sorted(rng.randrange(tensor.shape[by] + 1) for _ in range(world_size - 1)), tensor.shape[by]]
        order = rng.sample(range(world_size), world_size)
        start, end = cuts[order[rank]], cuts[order[rank] + 1]
        offsets = (start, 0) if by == 0 else (0, start)
        sizes = (end - start, tensor.shape[1]) if by == 0 else (tensor.shape[0], end - start)
        if start < end:
            mine.append(Piece(tensor, offsets, sizes))
    return mine


class Filler:
    """The bytes of one piece at any step; what doesn't depend on the step is computed once."""

    def __init__(self, seed: int, piece: Piece) -> None:
        self.piece = piece
        self._seed = seed
        rows = np.arange(piece.sizes[0], dtype=np.uint64) + np.uint64(piece.offsets[0])
        columns = np.arange(piece.sizes[1], dtype=np.uint64) + np.uint64(piece.offsets[1])
        flat = (rows[:, None] * np.uint64(piece.tensor.shape[1]) + columns[None, :]).reshape(-1)
        self._shifts = None
        if piece.tensor.dtype == "uint8":
            self._shifts = (flat & np.uint64(7)) * np.uint64(8)
            flat >>= np.uint64(3)
        flat *= _ODD
        self._words = flat

    def fill(self, step: int, out: Cells) -> None:
        """Write the piece, flat and row-major, as it is after ``step`` steps."""
        named = hashlib.blake2b(f"{self._seed} {self.piece.tensor.name} {step}".encode(), digest_size=8).digest()
        key = np.frombuffer(named, np.uint64)[0]
        if self._shifts is None:
            np.add(self._words, key, out=out)
        else:
            np.copyto(out, (self._words + key) >> self._shifts, casting="unsafe")

    def wrong(self, step: int, got: Cells) -> str:
        """What is wrong with bytes that should be those after ``step`` steps; empty when they are."""
        expected = np.empty_like(got)
        self.fill(step, expected)
        differs = np.flatnonzero(expected != got)
        if not differs.size:
            return ""
        piece = self.piece
        return (
            f"{differs.size} of {got.size} elements of {piece.tensor.name} at {piece.offsets}+{piece.sizes} are not those of"
            f" step {step}, first at {differs[0]}"
        )
