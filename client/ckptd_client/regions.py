"""Which part of which tensor a rank holds. The only file that touches torch's private parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptd_client.errors import UnsupportedStateError

if TYPE_CHECKING:
    import torch

_DTYPES = frozenset(
    (
        "bool",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a global tensor. ``replicated``: all ranks of the world hold it whole."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    replicated: bool


def chunk_bounds(length: int, pieces: int, index: int) -> tuple[int, int]:
    """(start, size) of piece ``index`` of a dimension cut into ceil-chunks as FSDP2 does; the last ones may be empty."""
    chunk = -(-length // pieces)
    start = min(chunk * index, length)
    return start, min(chunk, length - start)


def split_replicated(items: Sequence[tuple[tuple[int, ...], int]], replicas: int) -> list[list[tuple[int, int]]]:
    """Share items that all replicas hold: for each item, each replica's (first row, number of rows) of dimension 0.

    ``items`` are (shape, bytes per element). The items' bytes in order are one line, cut in ``replicas`` equal parts, and each
    cut is rounded to a row; a 0-dim item is one row. An item without bytes goes to replica 0. Deterministic, no communication,
    and an exact partition (I9).
    """
    widths = []
    for shape, itemsize in items:
        row = itemsize
        for size in shape[1:]:
            row *= size
        widths.append((shape[0] if shape else 1, row))
    total = sum(rows * row for rows, row in widths)
    cuts = [total * replica // replicas for replica in range(replicas + 1)]
    shares, start = [], 0
    for rows, row in widths:
        if rows * row == 0:
            shares.append([(0, rows)] + [(0, 0)] * (replicas - 1))
            continue
        edges = [min(max((2 * (cut - start) + row) // (2 * row), 0), rows) for cut in cuts]
        edges[0], edges[-1] = 0, rows
        shares.append([(edges[i], edges[i + 1] - edges[i]) for i in range(replicas)])
        start += rows * row
    return shares


def dtype_name(dtype: torch.dtype, path: str) -> str:
    """torch's name of the dtype without ``torch.``; raises UnsupportedStateError for one that isn't plain bytes."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsupportedStateError(path, str(dtype), "tensors of this dtype can't be stored")
    return name


def dtype_of(name: str) -> torch.dtype | None:
    """The dtype of that name, or None when this torch has none."""
    import torch

    found = getattr(torch, name, None) if name in _DTYPES else None
    return found if isinstance(found, torch.dtype) else None


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor, without importing torch.distributed for those who don't use it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory that this rank holds, without a collective and without gradient history."""
    local: torch.Tensor = tensor._local_tensor if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return local.detach()


def region_of(tensor: torch.Tensor, world_size: int, path: str) -> Region:
    """The region that this rank holds. Raises UnsupportedStateError naming ``path`` for what can't be placed (yet)."""
    import torch

    shape = tuple(tensor.shape)
    if is_dtensor(tensor):
        region = _dtensor_region(tensor, world_size, path)
    else:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise UnsupportedStateError(path, type(tensor).__qualname__, "this tensor subclass can't be stored")
        region = Region(shape, (0,) * len(shape), shape, True)
    local = local_of(tensor)
    if type(local) not in (torch.Tensor, torch.nn.Parameter) or local.layout is not torch.strided:
        raise UnsupportedStateError(path, type(local).__qualname__, f"only dense tensors can be stored layout={local.layout}")
    if local.device.type == "meta":
        raise UnsupportedStateError(path, "meta tensor", "it has no memory yet; materialise the module first")
    if tuple(local.shape) != region.sizes:
        raise UnsupportedStateError(
            path, "DTensor", f"its local shape is not what its placement says local={tuple(local.shape)} region={region.sizes}"
        )
    return region


def _dtensor_region(tensor: Any, world_size: int, path: str) -> Region:
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements, shape = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
    if mesh.ndim != 1 or mesh.size() != world_size or mesh.get_coordinate() is None:
        raise UnsupportedStateError(
            path, "DTensor", f"only a 1-D mesh over the whole world is supported so far mesh={tuple(mesh.shape)}"
        )
    (placement,), (at,) = placements, mesh.get_coordinate()
    if type(placement) is Replicate:
        return Region(shape, (0,) * len(shape), shape, True)
    if type(placement) is not Shard:
        raise UnsupportedStateError(path, "DTensor", f"only Shard and Replicate are supported so far placement={placement}")
    start, size = chunk_bounds(shape[placement.dim], mesh.size(), at)
    offsets = tuple(start if dim == placement.dim else 0 for dim in range(len(shape)))
    sizes = tuple(size if dim == placement.dim else length for dim, length in enumerate(shape))
    return Region(shape, offsets, sizes, False)


def like_placed(parameter: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """``local`` as a tensor placed as ``parameter`` is; both global shapes are the same."""
    if not is_dtensor(parameter):
        return local
    from torch.distributed.tensor import DTensor

    placed: Any = parameter
    made: torch.Tensor = DTensor.from_local(
        local, placed.device_mesh, placed.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return made


def copy_many(destinations: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its destination of equal shape and dtype, in one call where torch has it."""
    import torch

    with torch.no_grad():
        if destinations:
            torch._foreach_copy_(destinations, sources)


def pieces(flat: torch.Tensor, spans: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Views of (offset, length) each. Spans that follow each other, with gaps or not, cost one call and not one each."""
    cuts: list[int] = []  # lengths of gap, piece, gap, piece, …, rest
    at = 0
    for offset, count in spans:
        if offset < at:
            return [flat.narrow(0, offset, count) for offset, count in spans]
        cuts += (offset - at, count)
        at = offset + count
    return list(flat.split_with_sizes([*cuts, flat.numel() - at])[1::2])
