"""What `dcp.save` has stored through the client's `CkptdWriter`, as the state dict that it was given.

Its tensors lie under DCP's flat names, `META` says where they belong. A value that is no tensor is a torch.save file, the first
`bytes[name]` bytes of a uint8 tensor of its name: it is parsed, never unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckptd.errors import CorruptError, InterchangeError
from ckptd.interchange.archive import Place
from ckptd.interchange.foreign import Foreign
from ckptd.interchange.read_dcp import nested
from ckptd.interchange.read_torch import read_torch
from ckptd.interchange.spans import Span, read_spans, spans
from ckptd.interchange.tree import TensorRef, replaced
from ckptd.model.layout import Tensor
from ckptd.restore.checkpoint import Checkpoint
from ckptd.store.base import Store

META: Final = "ckptd.dcp"
_VERSION: Final = 1
_VALUES_MAX: Final = 1 << 30


async def read_saved_dcp(store: Store, checkpoint: Checkpoint, meta: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict; ``meta`` is what `META` holds, ``tensors`` are those of global scope. What only one rank had under a name
    which another one stores isn't in it.

    Raises InterchangeError for what was saved without collectives and for values that are no plain data, CorruptError, and what
    the store raises.
    """
    if type(meta) is not dict or meta.get("version") != _VERSION or type(meta.get("bytes")) is not dict:
        raise CorruptError("the checkpoint's DCP metadata are malformed, or need another version of ckptd")
    if meta.get("apart") is True:
        job, size = checkpoint.manifest.job, checkpoint.manifest.world_size
        ranks = f"{size} rank{'s' * (size > 1)}"
        raise InterchangeError(
            "it was saved with use_collectives=False: each rank has stored what it had, and nothing says what the"
            f" whole is; dcp.load it on {ranks} with CkptdReader, dcp.save it with collectives, and export that job={job}"
        )
    values: dict[str, Any] = {name: TensorRef(name) for name in tensors if name not in meta["bytes"]}
    files = await _bodies(store, checkpoint, meta["bytes"], tensors)
    for name, length in meta["bytes"].items():
        values[name] = replaced(await read_torch(files, Place(name, 0, length)), _plain(name))
    paths = meta.get("planner")
    if isinstance(paths, dict):  # in the order in which they were given
        values = {**{name: values[name] for name in paths if name in values}, **values}
    return nested(values, paths)


def _plain(name: str) -> Any:
    def checked(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Foreign):
            raise InterchangeError(f"DCP has stored a tensor in a value that is none entry={name!r:.200} path={path!r:.200}")
        return leaf

    return checked


class _Memory:
    """Files that are held whole."""

    def __init__(self, bodies: dict[str, bytearray]) -> None:
        self._bodies = bodies

    async def size(self, name: str) -> int | None:
        return len(self._bodies[name]) if name in self._bodies else None

    async def read(self, name: str, start: int, end: int) -> bytes:
        if not 0 <= start <= end <= len(self._bodies.get(name, b"")):
            raise InterchangeError(f"a value ends before it should entry={name!r:.200}")
        return bytes(self._bodies[name][start:end])


async def _bodies(store: Store, checkpoint: Checkpoint, lengths: dict[Any, Any], tensors: Mapping[str, Tensor]) -> _Memory:
    wanted: list[Span] = []
    for name, length in lengths.items():
        tensor = tensors.get(name)
        held = tensor.shape[0] if tensor is not None and tensor.dtype == "uint8" and len(tensor.shape) == 1 else -1
        if tensor is None or type(length) is not int or not 0 <= length <= held:
            raise CorruptError(f"the checkpoint lacks a value that its DCP metadata name entry={name!r:.200}")
        wanted += spans(tensor)
    if sum(span.nbytes for span in wanted) > _VALUES_MAX:
        raise InterchangeError(f"values that are no tensors have over {_VALUES_MAX} bytes")
    bodies: dict[str, bytearray] = {}
    async for span, body in read_spans(store, checkpoint, wanted):
        bodies.setdefault(span.tensor.fqn, bytearray()).extend(body)
    return _Memory({name: body[: lengths[name]] for name, body in bodies.items()})
