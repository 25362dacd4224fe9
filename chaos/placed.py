"""Random tensors on random meshes. What a rank holds is said by torch alone: its placements come from `DTensorSpec`, its shard
from `torch.chunk` in the order of the cuts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry

_WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
DTYPES: Final = tuple(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32"),
        *(
            "float64",
            "complex32",
            "complex64",
            "complex128",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
        ),
        "float8_e8m0fnu",
    )
    if hasattr(torch, name)
)


@dataclass(frozen=True)
class Placed:
    """How a tensor lies on some ranks. ``shape`` None: plain on each; else ``order`` says which mesh dimension cuts which
    dimension of the tensor, in the order of the cuts; other mesh dimensions replicate.
    """

    ranks: tuple[int, ...]
    shape: tuple[int, ...] | None
    order: tuple[tuple[int, int], ...]  # (mesh dimension, dimension of the tensor)

    def local(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """What that rank holds, by torch.chunk."""
        if self.shape is None:
            return whole
        coordinate = _coordinate(self, rank)
        for mesh_dim, dim in self.order:
            chunks = whole.chunk(self.shape[mesh_dim], dim)
            at = coordinate[mesh_dim]
            whole = chunks[at] if at < len(chunks) else whole.narrow(dim, 0, 0)
        return whole

    def tensor(self, local: torch.Tensor, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """The tensor that the rank's state has, over the memory ``local``."""
        if self.shape is None:
            return local
        mesh = DeviceMesh("cpu", torch.tensor(self.ranks).view(self.shape), _init_backend=False, _rank=rank)
        made: torch.Tensor = DTensor.from_local(
            local, mesh, self.placements(mesh), run_check=False, shape=whole.shape, stride=whole.stride()
        )
        return made

    def placements(self, mesh: DeviceMesh) -> Sequence[Any]:
        """As torch writes this order of cuts."""
        plain: list[Any] = [Replicate()] * len(self.shape or ())
        for mesh_dim, dim in self.order:
            plain[mesh_dim] = Shard(dim)
        dims = sorted({dim for _, dim in self.order})
        entries = tuple(ShardOrderEntry(dim, tuple(at for at, cut in self.order if cut == dim)) for dim in dims)
        return DTensorSpec._convert_shard_order_to_StridedShard(entries, tuple(plain), mesh)


def _coordinate(placed: Placed, rank: int) -> list[int]:
    assert placed.shape is not None
    grid = torch.tensor(placed.ranks).view(placed.shape)
    found: list[int] = (grid == rank).nonzero()[0].tolist()
    return found


def noise(draw: random.Random, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Random bits of that type."""
    size = torch.empty((), dtype=dtype).element_size()
    count = size
    for length in shape:
        count *= length
    if dtype is torch.bool:
        return torch.tensor([draw.random() < 0.5 for _ in range(count)], dtype=torch.bool).view(tuple(shape))
    body = bytearray(draw.randbytes(max(count, size)))
    return torch.frombuffer(body, dtype=torch.uint8)[:count].view(dtype).view(tuple(shape))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether every element has the same bytes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.contiguous()  # of which a single element may have any stride
    return whole.as_strided((whole.numel(),), (1,)).view(_WORDS[whole.element_size()])


def spoil(memory: torch.Tensor, true: torch.Tensor) -> None:
    """Other bits than the right ones in every element."""
    if true.dtype is torch.bool:
        memory.copy_(~true)
    else:
        memory.copy_((_bits(true) ^ 1).view(true.dtype).view(true.shape))


def draw_placed(draw: random.Random, ranks: tuple[int, ...], ndim: int) -> Placed:
    """Any mesh of these ranks, and any way to cut a tensor of so many dimensions along it."""
    if draw.random() < 0.12:
        return Placed(ranks, None, ())
    count = len(ranks)
    shapes = [
        shape
        for dims in (1, 2, 3)
        for shape in itertools.product(range(1, count + 1), repeat=dims)
        if torch.tensor(shape).prod() == count
    ]
    shape = draw.choice(shapes)
    cuts = [(at, draw.randrange(ndim)) for at in range(len(shape)) if ndim and draw.random() < 0.75]
    draw.shuffle(cuts)
    standing = list(ranks)
    if draw.random() < 0.2:
        draw.shuffle(standing)
    return Placed(tuple(standing), shape, tuple(cuts))


def odd_memory(draw: random.Random, like: torch.Tensor) -> torch.Tensor:
    """Memory of that shape: in a row, in the middle of something bigger, or with gaps."""
    kind = draw.random()
    if kind < 0.6 or not like.dim():
        return torch.empty(like.shape, dtype=like.dtype)
    if kind < 0.8:
        return torch.empty((*like.shape[:-1], 2 * like.shape[-1] + 1), dtype=like.dtype)[..., 1::2]
    return torch.empty(tuple(reversed(like.shape)), dtype=like.dtype).permute(*reversed(range(like.dim())))
