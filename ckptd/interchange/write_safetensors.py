"""A checkpoint's tensors as safetensors files, sharded as model hubs expect it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ckptd.errors import InterchangeError
from ckptd.interchange.exporting import State, refs
from ckptd.interchange.safetensors import INDEX_NAME, SUFFIX, encode_header, encode_index
from ckptd.interchange.spans import read_spans, spans
from ckptd.interchange.tree import TensorRef, leaves
from ckptd.model.dtypes import item_bytes
from ckptd.model.layout import Tensor
from ckptd.restore.checkpoint import Checkpoint
from ckptd.store.base import Store

SHARD_BYTES: Final = 5 << 30
_Named = tuple[str, Tensor]


def bytes_of(tensor: Tensor) -> int:
    """Of all its elements."""
    size_bytes = item_bytes(tensor.dtype)
    for size in tensor.shape:
        size_bytes *= size
    return size_bytes


async def write_safetensors(
    store: Store,
    checkpoint: Checkpoint,
    state: State,
    directory: Path,
    shard_bytes: int,
    written: Callable[[int], object],
) -> None:
    """Write the state's tensors into ``directory``, in files of ``shard_bytes`` or one tensor. Tied names get a copy each.

    ``written`` gets the bytes of each piece. Raises InterchangeError for what safetensors can't hold, before anything is
    written, and what reading raises.
    """
    for path, leaf in leaves(state.tree):
        if not isinstance(leaf, TensorRef):
            raise InterchangeError(
                "safetensors holds nothing but tensors; export the part that is made of them (--part), or as torch or dcp"
                f" entry={path!r:.200} type={type(leaf).__name__}"
            )
    shards = [
        sorted(shard, key=lambda named: (-item_bytes(named[1].dtype), named[0]))  # so that each is aligned to its elements
        for shard in _shards([(name, state.tensor(ref)) for name, ref in refs(state.tree).items()], shard_bytes)
    ]
    names = [_name(number, len(shards)) for number in range(len(shards))]
    headers = [encode_header([(name, tensor.dtype, tensor.shape) for name, tensor in shard]) for shard in shards]
    for name, header, shard in zip(names, headers, shards, strict=True):
        with (directory / name).open("xb") as file:
            file.write(header)
            async for span, body in read_spans(store, checkpoint, [span for _, tensor in shard for span in spans(tensor)]):
                file.write(body)
                written(span.nbytes)
    if len(shards) > 1:
        files = {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard}
        total_bytes = sum(bytes_of(tensor) for shard in shards for _, tensor in shard)
        (directory / INDEX_NAME).write_bytes(encode_index(files, total_bytes))


def _shards(tensors: Sequence[_Named], shard_bytes: int) -> list[list[_Named]]:
    shards: list[list[_Named]] = [[]]
    filled = 0
    for name, tensor in tensors:
        if shards[-1] and filled + bytes_of(tensor) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, tensor))
        filled += bytes_of(tensor)
    return shards


def _name(number: int, count: int) -> str:
    return f"model{SUFFIX}" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}{SUFFIX}"
