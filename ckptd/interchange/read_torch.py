"""A torch.save file as a tree: its data.pkl is parsed, never unpickled; the tensors' bytes stay where they are."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.archive import Archive, Place, open_archive
from ckptd.interchange.cut import span_of
from ckptd.interchange.foreign import Files, Foreign, Piece
from ckptd.interchange.pickles import PICKLE_MAX, Function, load
from ckptd.interchange.torch_names import DTYPES_OF_STORAGES, UNTYPED
from ckptd.interchange.tree import DType, Opaque, replaced
from ckptd.model.dtypes import NAMES, OBJECT, item_bytes
from ckptd.model.region import Region

_AT_ONCE: Final = 16
_DIMS_MAX: Final = 64
_UNTYPED: Final = "untyped"


@dataclass(frozen=True, slots=True)
class _Class:
    """A storage class; ``dtype`` is "untyped" for the one that has none."""

    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (1 if self.dtype == _UNTYPED else item_bytes(self.dtype))


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


async def read_torch(files: Files, place: Place) -> Any:
    """The tree of the file at ``place``; its tensors are `Foreign`. Raises InterchangeError."""
    archive = await open_archive(files, place)
    tree = load(await archive.read("data.pkl", PICKLE_MAX), f"data.pkl of {place.file!r:.200}", ALLOWED, _storage)
    storages: dict[str, _Storage] = {}

    def collect(path: str, leaf: Any) -> Any:
        if isinstance(leaf, _Tensor):
            size_bytes = archive.size(f"data/{leaf.storage.key}")
            if size_bytes is None or size_bytes != leaf.storage.nbytes:
                raise InterchangeError(
                    f"a tensor's bytes are missing, or not as many as it says path={path!r:.200} file={place.file!r:.200}"
                    f" bytes={size_bytes} expected={leaf.storage.nbytes}"
                )
            storages[leaf.storage.key] = leaf.storage
        return leaf

    tree = replaced(tree, collect)
    starts = await _find(archive, list(storages))

    def found(path: str, leaf: Any) -> Any:
        if isinstance(leaf, _Tensor):
            start = starts[leaf.storage.key] + leaf.offset * item_bytes(leaf.dtype)
            whole = Region((0,) * len(leaf.sizes), leaf.sizes)
            return Foreign(leaf.dtype, leaf.sizes, (Piece(whole, place.file, start, leaf.strides),))
        if isinstance(leaf, _Class | _Storage | Function):
            raise InterchangeError(f"a value is no tensor and no plain data path={path!r:.200} file={place.file!r:.200}")
        return leaf

    return replaced(tree, found)


async def _find(archive: Archive, keys: list[str]) -> dict[str, int]:
    starts: dict[str, int] = {}
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        starts |= zip(some, await asyncio.gather(*(archive.find(f"data/{key}") for key in some)), strict=True)
    return starts


def _storage(pid: Any) -> _Storage:
    word, kind, key, _location, count = pid
    if word != "storage" or not isinstance(kind, _Class) or type(key) is not str or not _is_size(count):
        raise TypeError("a persistent id is no storage")
    return _Storage(kind.dtype, key, count)


def _tensor(storage: Any, offset: Any, sizes: Any, strides: Any, dtype: str, metadata: Any) -> _Tensor:
    if metadata:
        raise InterchangeError("a tensor is a lazy conjugate or negative; save it with .resolve_conj().resolve_neg()")
    if not isinstance(storage, _Storage) or type(sizes) is not tuple or type(strides) is not tuple:
        raise TypeError("a tensor is made of something else")
    if len(sizes) != len(strides) or len(sizes) > _DIMS_MAX or not all(map(_is_size, (offset, *sizes, *strides))):
        raise ValueError("a tensor has sizes that can't be")
    elements, whole = storage.nbytes // item_bytes(dtype), Region((0,) * len(sizes), sizes)
    if whole.elements > elements:
        raise InterchangeError("a tensor has more elements than memory (it is expanded); save it with .contiguous()")
    if whole.elements and offset + span_of(sizes, strides) > elements:
        raise ValueError("a tensor is outside of its storage")
    return _Tensor(storage, dtype, offset, sizes, strides)


def _rebuild_v2(storage: Any, offset: Any, sizes: Any, strides: Any, *more: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or storage.dtype == _UNTYPED:
        raise TypeError("a tensor is made of something else")
    return _tensor(storage, offset, sizes, strides, storage.dtype, more[2] if len(more) > 2 else None)


def _rebuild_v3(storage: Any, offset: Any, sizes: Any, strides: Any, *more: Any) -> _Tensor:
    dtype = more[2]
    if not isinstance(dtype, DType):
        raise TypeError("a tensor has no type")
    return _tensor(storage, offset, sizes, strides, dtype.name, more[3] if len(more) > 3 else None)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes are encoded in another way")
    return text.encode("latin-1")


def _size(sizes: Any = ()) -> tuple[int, ...]:
    return tuple(sizes)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


DTYPES: Final = {f"torch.{name}": DType(name) for name in NAMES if name != OBJECT}
ALLOWED: Final[dict[str, Any]] = {
    **DTYPES,
    **{f"torch.{storage}": _Class(dtype) for storage, dtype in DTYPES_OF_STORAGES.items()},
    f"torch.storage.{UNTYPED}": _Class(_UNTYPED),
    f"torch.{UNTYPED}": _Class(_UNTYPED),
    "torch._utils._rebuild_tensor": Function("_rebuild_tensor", _rebuild_v2),
    "torch._utils._rebuild_tensor_v2": Function("_rebuild_tensor_v2", _rebuild_v2),
    "torch._utils._rebuild_tensor_v3": Function("_rebuild_tensor_v3", _rebuild_v3),
    "torch._utils._rebuild_parameter": Function("_rebuild_parameter", _parameter),
    "torch.Size": Function("Size", _size),
    "torch.device": Function("device", lambda *args: Opaque(f"torch.device {args!s:.40}")),
    "collections.OrderedDict": Function("OrderedDict", OrderedDict),
    "collections.Counter": Function("Counter", lambda *counts: _counter(*counts)),
    "_codecs.encode": Function("encode", _bytes),
}


def _counter(counts: Any = ()) -> Counter[Any]:
    if type(counts) not in (dict, tuple) or (type(counts) is tuple and counts):
        raise TypeError("a Counter is made of something else")
    return Counter(counts)
