"""`CkptdStager`: the copy that dcp.async_save makes before training goes on, into memory that is kept warm."""

from __future__ import annotations

import copy
import mmap
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch.distributed.checkpoint.staging import AsyncStager

from ckptd_client import devices
from ckptd_client.moving import copy_many
from ckptd_client.regions import is_dtensor, is_sharded_tensor, like_placed, local_of

_ALIGN: Final = 64
_KEPT: Final = 2  # blocks of memory: one is being saved, the other is copied into


class _Block:
    """Memory, and whether anybody still looks at it."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(size, 1))
        self.size = size
        self._lease: weakref.ref[memoryview] | None = None

    @property
    def free(self) -> bool:
        """No tensor over it lives."""
        return self._lease is None or self._lease() is None

    def lend(self) -> torch.Tensor:
        """The memory as bytes. A storage holds the object that it was made from: so the lease lives as long as its tensors."""
        lease = memoryview(self._memory)
        self._lease = weakref.ref(lease)
        return torch.frombuffer(lease, dtype=torch.uint8)


class CkptdStager(AsyncStager):
    """Copies a state dict into CPU memory that is used again as soon as nobody holds the copy: so it is warm.

    Memory that was never touched takes a copy at a tenth of the speed. Tensors that share memory are copied once each.
    DTensors keep their placement; whatever else there is, is copied by copy.deepcopy. With the process type of async_save
    torch carries the copy over itself.
    """

    _synchronize_after_execute = True

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._lock = threading.Lock()

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy on CPU that later changes to the state don't reach. Returns when it is complete."""
        found = list(_tensors(state_dict, set()))
        with self._lock:
            copies = dict(zip(map(id, found), self._copy(found), strict=True))
        staged: dict[str, Any] = _rebuild(state_dict, copies)
        return staged

    def _copy(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        sources = [local_of(tensor) for tensor in tensors]
        starts, end = [], 0
        for source in sources:
            starts.append(end)
            end += -(-source.numel() * source.element_size() // _ALIGN) * _ALIGN
        memory = self._block(end).lend()
        copies = [
            memory[start : start + source.numel() * source.element_size()].view(source.dtype).view(source.shape)
            for start, source in zip(starts, sources, strict=True)
        ]
        copy_many(copies, sources)
        devices.synchronize({source.device for source in sources})
        return [like_placed(tensor, made) for tensor, made in zip(tensors, copies, strict=True)]

    def _block(self, size: int) -> _Block:
        for block in self._blocks:
            if block.free and size <= block.size <= 2 * size:
                return block
        self._blocks = [block for block in self._blocks if not block.free][-(_KEPT - 1) :]
        block = _Block(size)
        self._blocks.append(block)
        return block

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Let go of the memory; copies that are in use keep theirs."""
        with self._lock:
            self._blocks.clear()


def _is_ours(value: object) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) or is_dtensor(value)


def _tensors(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """The tensors in it that we copy, each once."""
    if isinstance(value, torch.Tensor):
        local = local_of(value) if _is_ours(value) else None
        if local is not None and id(value) not in seen and _is_ours(local) and local.layout is torch.strided:
            seen.add(id(value))
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part, seen)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part, seen)


def _rebuild(value: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    """``value`` with the copies in the places of its tensors."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, part in value.items():
            made[key] = _rebuild(part, copies)
        return made
    if isinstance(value, Mapping):
        return {key: _rebuild(part, copies) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_rebuild(part, copies) for part in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_rebuild(part, copies) for part in value)
    return _sharded_copy(value) if is_sharded_tensor(value) else copy.deepcopy(value)


def _sharded_copy(value: Any) -> Any:
    """Of a ShardedTensor, which knows a process group that can't be copied. Without a collective."""
    shards = [type(shard)(shard.tensor.detach().to("cpu", copy=True), shard.metadata) for shard in value.local_shards()]
    return type(value)._init_from_local_shards_and_global_metadata(
        shards, value.metadata(), process_group=value._process_group, init_rrefs=False
    )
