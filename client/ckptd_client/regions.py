"""Which part of which tensor a rank holds. The only file that touches torch's private parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptd_client.errors import ConfigError, UnsupportedStateError
from ckptd_client.placement import Cut, Holders, Mesh, box, replica_set

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
    """A rectangle of a global tensor; ``holders`` are the ranks, ascending, that have the very same bytes."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    holders: tuple[int, ...]


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


def is_sharded_tensor(value: object) -> bool:
    """Whether it is FSDP1's ShardedTensor, without importing what makes them."""
    module = sys.modules.get("torch.distributed._shard.sharded_tensor")
    return module is not None and isinstance(value, module.ShardedTensor)


def is_plain(tensor: object) -> bool:
    """Whether it is its own memory: no container of tensors."""
    return not hasattr(tensor, "__create_chunk_list__") and not is_sharded_tensor(tensor)  # DTensors have it, too


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory that this rank holds, without a collective and without gradient history. Of several blocks the first; without
    any the tensor itself.
    """
    if is_plain(tensor):
        return tensor.detach()
    if is_dtensor(tensor) and is_plain(tensor._local_tensor):  # type: ignore[attr-defined]
        local: torch.Tensor = tensor._local_tensor.detach()  # type: ignore[attr-defined]
        return local
    blocks = blocks_of(tensor)
    return blocks[0] if blocks else tensor


def block_of(tensor: Any, number: int) -> torch.Tensor:
    """Block ``number`` of `blocks_of`."""
    if (
        is_dtensor(tensor) and type(tensor._local_tensor) is sys.modules["torch"].Tensor
    ):  # in every snapshot, thousands of times
        block: torch.Tensor = tensor._local_tensor.detach()
        return block
    return blocks_of(tensor)[number]


def placement_of(tensor: Any) -> object:
    """Equal for two containers of tensors that hold regions of the same kind in the same places."""
    if is_dtensor(tensor):
        local = tensor._local_tensor
        placed = (tensor.shape, tensor.placements, tensor.device_mesh, local.shape, local.dtype, local.device, type(local))
        return placed if is_plain(local) else (*placed, placement_of(local))
    if is_sharded_tensor(tensor):
        return [(shard.metadata.shard_offsets, shard.metadata.shard_sizes) for shard in tensor.local_shards()]
    return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in tensor.__create_chunk_list__()]


def blocks_of(tensor: Any) -> list[torch.Tensor]:
    """The rectangles that this rank holds, in the order of `regions_of`."""
    if is_plain(tensor):
        return [tensor.detach()]
    if is_sharded_tensor(tensor):
        return [shard.tensor.detach() for shard in tensor.local_shards()]
    if is_dtensor(tensor):
        local = tensor._local_tensor
        if not hasattr(local, "__create_chunk_list__"):
            return [local.detach()]
        tensor = local
    from torch.distributed.checkpoint.metadata import MetadataIndex

    found = [
        tensor.__get_tensor_shard__(MetadataIndex("", chunk.offsets, number))
        for number, chunk in enumerate(tensor.__create_chunk_list__())
        if chunk.sizes.numel()
    ]
    return [block.detach() for block in found]


def regions_of(tensor: torch.Tensor, holders: Holders, rank: int, path: str) -> list[Region]:
    """The regions that this rank holds, one for each of `blocks_of`.

    ``holders``: who holds the part of the state that the tensor is in. Raises UnsupportedStateError naming ``path`` for what
    can't be placed.
    """
    shape = tuple(tensor.shape)
    if is_dtensor(tensor):
        regions = _dtensor_regions(tensor, holders, rank, path)
    elif is_sharded_tensor(tensor):
        shards = tensor.local_shards()  # type: ignore[attr-defined]
        regions = [
            Region(shape, tuple(shard.metadata.shard_offsets), tuple(shard.metadata.shard_sizes), (rank,)) for shard in shards
        ]
    elif not is_plain(tensor):
        regions = _chunk_regions(tensor, shape, (rank,))
    else:
        if not _is_ordinary(tensor):
            raise UnsupportedStateError(path, type(tensor).__qualname__, "this tensor subclass can't be stored")
        regions = [Region(shape, (0,) * len(shape), shape, holders.ranks)]
    blocks = blocks_of(tensor)
    if len(blocks) != len(regions):
        raise UnsupportedStateError(path, type(tensor).__qualname__, f"it has {len(blocks)} blocks for {len(regions)} regions")
    for block, region in zip(blocks, regions, strict=True):
        _check_block(block, region, path)
    return regions


def _is_ordinary(tensor: torch.Tensor) -> bool:
    import torch

    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _check_block(block: torch.Tensor, region: Region, path: str) -> None:
    import torch

    kind = type(block).__qualname__
    if not _is_ordinary(block) or block.layout is not torch.strided:
        raise UnsupportedStateError(path, kind, f"only dense tensors can be stored layout={block.layout}")
    if block.device.type == "meta":
        raise UnsupportedStateError(path, "meta tensor", "it has no memory yet; materialise the module first")
    if block.numel() and (block.is_cpu or block.is_cuda) and block.untyped_storage().nbytes() < _reach_bytes(block):
        raise UnsupportedStateError(path, kind, "its memory has been let go (FSDP between two uses?); register before training")
    if any(offset + size > whole for offset, size, whole in zip(region.offsets, region.sizes, region.shape, strict=True)):
        says = f"shape={region.shape} offsets={region.offsets} sizes={region.sizes}"
        raise UnsupportedStateError(path, kind, f"its chunk is outside of the tensor {says}")
    if tuple(block.shape) != region.sizes:
        says = f"local={tuple(block.shape)} region={region.sizes}"
        raise UnsupportedStateError(path, kind, f"its local shape is not what its placement says {says}")


def _reach_bytes(block: torch.Tensor) -> int:
    """Where in its storage the last element ends."""
    last: int = sum((size - 1) * stride for size, stride in zip(block.shape, block.stride(), strict=True))
    return (int(block.storage_offset()) + last + 1) * block.itemsize


def check_known(tensor: torch.Tensor, path: str) -> None:
    """Raise UnsupportedStateError for a tensor that can't even be asked for its shape."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        raise UnsupportedStateError(
            path, type(tensor).__qualname__, "it has no shape yet; run the module once before register()"
        )
    if is_plain(tensor) and tensor.is_nested and tensor.layout is torch.strided:
        raise UnsupportedStateError(path, "nested tensor", "only dense tensors can be stored; store its values and offsets")


def _chunk_regions(tensor: Any, shape: tuple[int, ...], holders: tuple[int, ...]) -> list[Region]:
    chunks = [chunk for chunk in tensor.__create_chunk_list__() if chunk.sizes.numel()]
    return [Region(shape, tuple(chunk.offsets), tuple(chunk.sizes), holders) for chunk in chunks]


def _dtensor_regions(tensor: Any, holders: Holders, rank: int, path: str) -> list[Region]:
    mesh, shape = _mesh(tensor.device_mesh), tuple(tensor.shape)
    coordinate = mesh.coordinate(rank)
    at = tensor.device_mesh.get_coordinate()
    if coordinate is not None and (at is None or tuple(at) != coordinate):
        raise UnsupportedStateError(path, "DTensor", f"torch.distributed has another rank than RANK={rank} says")
    cuts = tuple(_cut(placement, path) for placement in tensor.placements)
    try:
        same = replica_set(holders, mesh, cuts, rank)
        assert coordinate is not None
        if hasattr(tensor._local_tensor, "__create_chunk_list__"):
            return _chunk_regions(tensor._local_tensor, shape, same)
        offsets, sizes = box(shape, cuts, mesh.shape, coordinate)
    except (ValueError, ConfigError) as error:
        raise UnsupportedStateError(path, "DTensor", f"{error} placements={tensor.placements}") from error
    return [Region(shape, offsets, sizes, same)]


@lru_cache(maxsize=64)
def _mesh(mesh: Any) -> Mesh:
    return Mesh(tuple(mesh.mesh.shape), tuple(mesh.mesh.reshape(-1).tolist()))


def mesh_of(mesh: object) -> Mesh | None:
    """A DeviceMesh's ranks; None if it is none."""
    module = sys.modules.get("torch.distributed.device_mesh")
    if module is None or not isinstance(mesh, module.DeviceMesh):
        return None
    found: Mesh = _mesh(mesh)
    return found


def _cut(placement: Any, path: str) -> Cut:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    if type(placement) is Replicate:
        return None
    if isinstance(placement, _StridedShard):  # a Shard in some versions, and none in others
        return placement.dim, int(placement.split_factor)
    if type(placement) is Shard:
        return placement.dim, 1
    if placement.is_partial():
        raise UnsupportedStateError(
            path, "DTensor", f"its values are partial sums; redistribute it first placement={placement}"
        )
    raise UnsupportedStateError(path, "DTensor", f"this kind of placement can't be stored placement={placement}")


def like_placed(parameter: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """``local`` as a tensor placed as ``parameter`` is; both global shapes are the same."""
    if not is_dtensor(parameter):
        return local
    placed: Any = parameter
    return _dtensor(local, placed.device_mesh, placed.placements, parameter.shape, parameter.stride())


def like_replicated(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``whole`` as a tensor that all ranks of ``parameter``'s mesh hold."""
    if not is_dtensor(parameter):
        return whole
    from torch.distributed.tensor import Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return _dtensor(whole, mesh, (Replicate(),) * mesh.ndim, whole.shape, whole.stride())


def _dtensor(local: torch.Tensor, mesh: Any, placements: tuple[Any, ...], shape: Any, stride: Any) -> torch.Tensor:
    """``local`` where it is: `DTensor.from_local` would take what is offloaded to the CPU to the mesh's device."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    spec = DTensorSpec(mesh, placements, TensorMeta(shape, stride, local.dtype))
    made: torch.Tensor = DTensor(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return made


def is_fsdp1(parameter: object) -> bool:
    """Whether FSDP1 has flattened this parameter: its optimizer's state then is no state of it."""
    return bool(getattr(parameter, "_fsdp_flattened", False) or getattr(parameter, "_is_flat_param", False))


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
