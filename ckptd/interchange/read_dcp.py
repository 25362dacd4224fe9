"""A checkpoint of torch.distributed.checkpoint as a tree: its `.metadata` is parsed, never unpickled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.archive import Place
from ckptd.interchange.foreign import Files, Foreign, Piece, check_name
from ckptd.interchange.pickles import PICKLE_MAX, Function, Record, load, record
from ckptd.interchange.read_torch import DTYPES, read_torch
from ckptd.interchange.tree import DEPTH_MAX, DType, Opaque
from ckptd.model.region import Region, covered_once

METADATA: Final = ".metadata"
_AT_ONCE: Final = 16
_MODULE: Final = "torch.distributed.checkpoint.metadata"
_CLASSES: Final = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)


def _member(kind: Any, name: Any) -> Record:
    """Python 3.11.0 to 3.11.3 pickle a member of an enumeration as getattr(class, name)."""
    if not isinstance(kind, Function) or kind.name != "_MEM_FORMAT_ENCODING" or type(name) is not str:
        raise TypeError("an attribute is taken of something else")
    return Record(kind.name, (name,))


_ALLOWED: Final[dict[str, Any]] = {
    **DTYPES,
    **{f"{_MODULE}.{name}": record(name) for name in _CLASSES},
    "torch.distributed.checkpoint.filesystem._StorageInfo": record("_StorageInfo"),
    "torch.Size": Function("Size", lambda sizes=(): tuple(sizes)),
    "torch.serialization._get_layout": Function("_get_layout", lambda name: Opaque(f"layout {name!s:.40}")),
    "collections.OrderedDict": Function("OrderedDict", dict),
    "builtins.getattr": Function("getattr", _member),
    "pathlib.PosixPath": record("PosixPath"),
    "pathlib._local.PosixPath": record("PosixPath"),
}
_Found = dict[tuple[str, tuple[int, ...] | None], Place]
_Path = tuple[str | int, ...]


async def read_dcp(files: Files) -> dict[str, Any]:
    """The state dict of the checkpoint in a directory; its tensors are `Foreign`. Raises InterchangeError."""
    size_bytes = await files.size(METADATA) or 0
    if size_bytes > PICKLE_MAX:
        raise InterchangeError(f".metadata has {size_bytes} bytes, over {PICKLE_MAX}")
    metadata = load(await files.read(METADATA, 0, size_bytes), METADATA, _ALLOWED)
    described, stored, paths = _fields(metadata, "Metadata", "state_dict_metadata", "storage_data", "planner_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise InterchangeError(f"{METADATA} describes no checkpoint of files (another storage writer's?)")
    places = await _places(files, stored)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def value(name: Any, kind: Any) -> Any:
        if type(name) is not str:
            raise InterchangeError(f"{METADATA} has an entry without a name")
        async with gate:
            if isinstance(kind, Record) and kind.kind == "BytesStorageMetadata":
                return await read_torch(files, _place(places, name, None))
            return await _tensor(files, places, name, kind)

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(_kept(value(name, kind))) for name, kind in described.items()}
    values = {}
    for name, task in tasks.items():
        found, error = task.result()
        if error is not None:
            raise error
        values[name] = found
    return nested(values, paths)


async def _kept(work: Any) -> tuple[Any, InterchangeError | None]:
    """The first error in order is told, not the first in time: the same damage gives the same message."""
    try:
        return await work, None
    except InterchangeError as error:
        return None, error


async def _places(files: Files, stored: Mapping[Any, Any]) -> _Found:
    found: _Found = {}
    sizes: dict[str, int] = {}
    for index, info in stored.items():
        fqn, offset = _fields(index, "MetadataIndex", "fqn", "offset")
        name, start, length, transforms = _fields(
            info, "_StorageInfo", "relative_path", "offset", "length", "transform_descriptors"
        )
        known = type(fqn) is str and type(name) is str and _are_sizes((start, length))
        if not known or not (offset is None or _are_sizes(offset)):
            raise InterchangeError(f"{METADATA} says in an unknown way where something is entry={fqn!r:.200}")
        if transforms:
            raise InterchangeError(
                f"an entry is stored with an extension (compressed?), which can't be imported entry={fqn!r:.200}"
            )
        if name not in sizes:
            size_bytes = await files.size(check_name(name))
            if size_bytes is None:
                raise InterchangeError(f"a file of the checkpoint is missing file={name!r:.200}")
            sizes[name] = size_bytes
        if start + length > sizes[name]:
            raise InterchangeError(
                f"a file of the checkpoint is cut off file={name!r:.200} bytes={sizes[name]} expected={start + length}"
            )
        found[fqn, offset] = Place(name, start, length)
    return found


def _place(places: _Found, name: str, offset: tuple[int, ...] | None) -> Place:
    if (name, offset) not in places:
        raise InterchangeError(
            f"the checkpoint doesn't have all of an entry; was its save interrupted? entry={name!r:.200} offset={offset}"
        )
    return places[name, offset]


async def _tensor(files: Files, places: _Found, name: str, kind: Any) -> Foreign:
    properties, shape, chunks = _fields(kind, "TensorStorageMetadata", "properties", "size", "chunks")
    dtype = _dtype(properties)
    if dtype is None or not _are_sizes(shape) or type(chunks) is not list:
        raise InterchangeError(f"{METADATA} describes an entry in an unknown way entry={name!r:.200}")
    pieces: list[Piece] = []
    for chunk in chunks:
        offsets, sizes = _fields(chunk, "ChunkStorageMetadata", "offsets", "sizes")
        if not _are_sizes(offsets) or not _are_sizes(sizes) or len(offsets) != len(sizes):
            raise InterchangeError(f"{METADATA} describes a chunk in an unknown way entry={name!r:.200}")
        region = Region(offsets, sizes)
        if not region.within(shape):
            raise InterchangeError(f"a chunk is outside of its tensor entry={name!r:.200} chunk={region} shape={shape}")
        if region.elements:
            pieces.append(await _piece(files, _place(places, name, offsets), name, dtype, region))
    if not covered_once(Region((0,) * len(shape), shape), [piece.region for piece in pieces]):
        raise InterchangeError(f"the chunks of a tensor don't have each of its elements once entry={name!r:.200}")
    return Foreign(dtype, shape, tuple(pieces))


def _dtype(properties: Any) -> str | None:
    """Of TensorProperties, whose state is a tuple that begins with it."""
    state = properties.state if isinstance(properties, Record) and properties.kind == "TensorProperties" else None
    first = state[0] if type(state) is tuple and state else None
    return first.name if isinstance(first, DType) else None


async def _piece(files: Files, place: Place, name: str, dtype: str, region: Region) -> Piece:
    found = await read_torch(files, place)
    if not isinstance(found, Foreign) or (found.dtype, found.shape) != (dtype, region.sizes):
        raise InterchangeError(f"a chunk is stored otherwise than {METADATA} says entry={name!r:.200} chunk={region}")
    return Piece(region, place.file, found.pieces[0].start, found.pieces[0].strides)


def nested(values: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """The dicts and lists whose flat form these values are. ``paths``: name → where it was; without it names are keys.

    Raises InterchangeError when they don't go together.
    """
    root: dict[str | int, Any] = {}
    inner = {id(root)}
    for name, value in values.items():
        path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
        if type(path) is not tuple or not 0 < len(path) <= DEPTH_MAX or not all(type(key) in (str, int) for key in path):
            raise InterchangeError(f"DCP's metadata say in an unknown way where an entry belongs entry={name!r:.200}")
        at = root
        for key in path[:-1]:
            if key not in at:
                at[key] = {}
                inner.add(id(at[key]))
            at = at[key]
            if id(at) not in inner:
                raise InterchangeError(f"two entries of DCP's metadata belong to one place entry={name!r:.200}")
        if path[-1] in at:
            raise InterchangeError(f"two entries of DCP's metadata belong to one place entry={name!r:.200}")
        at[path[-1]] = value
    return {str(key): _listed(part, inner) for key, part in root.items()}


def _listed(part: Any, inner: set[int]) -> Any:
    """With lists in the place of dicts by number."""
    if id(part) not in inner:
        return part
    if all(type(key) is int for key in part):
        if sorted(part) != list(range(len(part))):
            raise InterchangeError("a list of DCP's metadata lacks entries")
        return [_listed(part[at], inner) for at in range(len(part))]
    return {str(key): _listed(value, inner) for key, value in part.items()}


def _fields(value: Any, kind: str, *names: str) -> list[Any]:
    """Attributes of an object of that class; None for those that it lacks, all of them if it is another object."""
    is_one = isinstance(value, Record) and value.kind == kind
    return [value.get(name) if is_one else None for name in names]


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value < 1 << 60 for value in values)
