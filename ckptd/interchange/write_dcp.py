"""A directory that torch.distributed.checkpoint loads: `__0_0.distcp` with the items, and `.metadata` that says where they are.

An item is a torch.save file within the file: a chunk of a tensor, or a value that is no tensor. Names are those that `dcp.save`
of the same state dict gives: keys joined with dots, lists only followed where there are tensors or dicts in them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.exporting import State
from ckptd.interchange.opcodes import Writer
from ckptd.interchange.spans import Span, read_spans, spans
from ckptd.interchange.tree import TensorRef
from ckptd.interchange.write_torch import Archive, pickle_of, write_tensor
from ckptd.model.layout import Tensor
from ckptd.restore.checkpoint import Checkpoint
from ckptd.store.base import Store

DATA: Final = "__0_0.distcp"
METADATA: Final = ".metadata"
MODULE: Final = "torch.distributed.checkpoint.metadata"
FILES: Final = "torch.distributed.checkpoint.filesystem"
Path_ = tuple[str | int, ...]
_Bodies = AsyncGenerator[tuple[Span, memoryview], None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A rectangle of a tensor (None: a value), as ``length`` bytes at ``offset`` of the file."""

    span: Span | None
    offset: int
    length: int


@dataclass(slots=True)
class _Item:
    """A name of the flat state dict, and what it stands for."""

    name: str
    path: Path_
    value: Any
    chunks: list[Chunk] = field(default_factory=list)


async def write_dcp(
    store: Store, checkpoint: Checkpoint, state: State, directory: Path, written: Callable[[int], object]
) -> None:
    """Write the state into ``directory``. Tied tensors are stored once. ``written`` gets the bytes of each piece.

    Raises InterchangeError for what has no such form, before anything is written, and what reading raises.
    """
    items = list(_flat(state.tree))
    if len({item.name for item in items}) < len(items):
        raise InterchangeError("two entries have one dotted name, which Distributed Checkpoint can't tell apart; rename a key")
    pickles = {at: pickle_of(item.value, state, item.name) for at, item in enumerate(items) if not _is_tensor(item)}
    first: dict[str, _Item] = {}
    wanted: list[Span] = []
    for at, item in enumerate(items):
        if not _is_tensor(item):
            wanted += [span for tensor in pickles[at][1] for span in spans(tensor)]
        elif first.setdefault(item.value.fqn, item) is item:
            wanted += spans(state.tensor(item.value))
    bodies = read_spans(store, checkpoint, wanted)
    with (directory / DATA).open("xb") as file:
        for at, item in enumerate(items):
            if not _is_tensor(item):
                await _write_value(file, item, *pickles[at], bodies, written)
            elif first[item.value.fqn] is item:
                await _write_tensor(file, item, state.tensor(item.value), bodies, written)
            else:
                item.chunks = first[item.value.fqn].chunks
    await bodies.aclose()
    (directory / METADATA).write_bytes(_metadata(items, state))


def _is_tensor(item: _Item) -> bool:
    return isinstance(item.value, TensorRef)


async def _write_tensor(
    file: IO[bytes], item: _Item, tensor: Tensor, bodies: _Bodies, written: Callable[[int], object]
) -> None:
    chunks = list(spans(tensor)) or [Span(tensor, (0,) * len(tensor.shape), tensor.shape, 0)]
    for chunk in chunks:
        begin, writer = file.tell(), Writer()
        write_tensor(writer, 0, tensor.dtype, chunk.sizes)
        with Archive(file, "archive") as archive:
            archive.begin(writer.finished())
            with archive.storage(0) as entry:
                if chunk.nbytes:
                    _, body = await anext(bodies)
                    entry.write(body)
                    written(chunk.nbytes)
            archive.end()
        item.chunks.append(Chunk(chunk, begin, file.tell() - begin))


async def _write_value(
    file: IO[bytes], item: _Item, pickle: bytes, tensors: Sequence[Tensor], bodies: _Bodies, written: Callable[[int], object]
) -> None:
    begin = file.tell()
    with Archive(file, "archive") as archive:
        archive.begin(pickle)
        for number, tensor in enumerate(tensors):
            with archive.storage(number) as entry:
                for _ in spans(tensor):
                    span, body = await anext(bodies)
                    entry.write(body)
                    written(span.nbytes)
        archive.end()
    item.chunks.append(Chunk(None, begin, file.tell() - begin))


def _flat(tree: Any) -> Iterator[_Item]:
    """What `dcp.save` would call the entries. Empty dicts, which it loses, are values of their own."""
    if not isinstance(tree, dict):
        raise InterchangeError(f"Distributed Checkpoint holds dicts; this part is a {type(tree).__name__}")

    def walk(path: Path_, value: Any) -> Iterator[_Item]:
        if isinstance(value, dict) and value:
            for key, part in value.items():
                yield from walk((*path, str(key)), part)
        elif type(value) is list and not _is_plain(value):
            for at, part in enumerate(value):
                yield from walk((*path, at), part)
        else:
            yield _Item(".".join(map(str, path)), path, value)

    for key, part in tree.items():
        yield from walk((str(key),), part)


def _is_plain(rows: list[Any]) -> bool:
    """No tensor or dict in it, nor in lists of it."""
    return all(not isinstance(part, TensorRef | dict) and (type(part) is not list or _is_plain(part)) for part in rows)


def _metadata(items: Sequence[_Item], state: State) -> bytes:
    """The pickle of torch's Metadata object."""
    writer = Writer()
    _new(writer, MODULE, "Metadata")
    with _Fields(writer) as fields:
        fields.key("state_dict_metadata")
        _table(writer, items, lambda item: _described(writer, item, state))
        fields.key("planner_data")
        _table(writer, items, lambda item: writer.value(item.path, "", _never))
        fields.key("storage_data")
        _storage_data(writer, items)
    return writer.finished()


def _described(writer: Writer, item: _Item, state: State) -> None:
    if not _is_tensor(item):
        _new(writer, MODULE, "BytesStorageMetadata")
        return
    tensor = state.tensor(item.value)
    _new(writer, MODULE, "TensorStorageMetadata")
    with _Fields(writer) as fields:
        fields.key("properties")
        _properties(writer, tensor.dtype)
        fields.key("size")
        writer.size(tensor.shape)
        fields.key("chunks")
        writer.close(b"](")
        for chunk in item.chunks:
            assert chunk.span is not None
            _new(writer, MODULE, "ChunkStorageMetadata")
            with _Fields(writer) as inner:
                inner.key("offsets")
                writer.size(chunk.span.offsets)
                inner.key("sizes")
                writer.size(chunk.span.sizes)
        writer.close(b"e")


def _properties(writer: Writer, dtype: str) -> None:
    """(dtype, layout, requires_grad, memory format, pin_memory), which is what its __setstate__ takes."""
    _new(writer, MODULE, "TensorProperties")
    writer.mark()
    writer.dtype(dtype)
    writer.name("torch.serialization", "_get_layout")
    writer.mark()
    writer.text("torch.strided")
    writer.close(b"tR")
    writer.flag(False)
    writer.name(MODULE, "_MEM_FORMAT_ENCODING")
    writer.row((0,))
    writer.close(b"R")
    writer.flag(False)
    writer.close(b"tb")


def _storage_data(writer: Writer, items: Sequence[_Item]) -> None:
    """MetadataIndex → _StorageInfo."""
    writer.close(b"}")
    for item in items:
        for number, chunk in enumerate(item.chunks):
            _new(writer, MODULE, "MetadataIndex")
            with _Fields(writer) as fields:
                fields.key("fqn")
                writer.text(item.name)
                fields.key("index")
                writer.none() if chunk.span is None else writer.integer(number)
                fields.key("offset")
                writer.none() if chunk.span is None else writer.size(chunk.span.offsets)
            _new(writer, FILES, "_StorageInfo")
            with _Fields(writer) as fields:
                fields.key("relative_path")
                writer.text(DATA)
                fields.key("offset")
                writer.integer(chunk.offset)
                fields.key("length")
                writer.integer(chunk.length)
            writer.close(b"s")


def _table(writer: Writer, items: Sequence[_Item], write: Callable[[_Item], None]) -> None:
    """A dict by name."""
    writer.close(b"}")
    for item in items:
        writer.text(item.name)
        write(item)
        writer.close(b"s")


def _new(writer: Writer, module: str, name: str) -> None:
    """An object of that class, without calling its __init__."""
    writer.name(module, name)
    writer.close(b")\x81")


class _Fields:
    """The attributes of the object on the stack."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __enter__(self) -> _Fields:
        self._writer.close(b"}(")
        return self

    def key(self, name: str) -> None:
        """Its value comes next."""
        self._writer.text(name)

    def __exit__(self, *_: object) -> None:
        self._writer.close(b"ub")


def _never(leaf: Any, path: str) -> None:
    raise AssertionError(f"a path holds texts and numbers only, not {leaf!r:.40} at {path}")
