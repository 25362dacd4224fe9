"""A torch.save file: a zip of stored (uncompressed) entries. `data.pkl` is the tree, `data/N` are the bytes of its storages.

Written without torch and in one pass. Each storage begins at a multiple of 64, as torch writes it, so that it can be mapped.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.cut import strides_of
from ckptd.interchange.exporting import State
from ckptd.interchange.opcodes import Writer
from ckptd.interchange.spans import read_spans, spans
from ckptd.interchange.torch_names import STORAGES, UNTYPED
from ckptd.interchange.tree import TensorRef
from ckptd.model.dtypes import item_bytes
from ckptd.model.layout import Tensor
from ckptd.restore.checkpoint import Checkpoint
from ckptd.store.base import Store

_ALIGN: Final = 64
_LOCAL_HEADER: Final = 30
_ZIP64_EXTRA: Final = 20
_DATE: Final = (1980, 1, 1, 0, 0, 0)


async def write_torch(store: Store, checkpoint: Checkpoint, state: State, path: Path, written: Callable[[int], object]) -> None:
    """Write the state to a new file ``path``, as ``torch.save`` of its tree would. Tied tensors share a storage.

    ``written`` gets the bytes of each piece. Raises InterchangeError for values that ``torch.load(weights_only=True)`` doesn't
    read, before anything is written, and what reading raises.
    """
    pickle, tensors = pickle_of(state.tree, state)
    with path.open("xb") as file, Archive(file, "archive") as archive:
        archive.begin(pickle)
        wanted = [span for tensor in tensors for span in spans(tensor)]
        pieces = read_spans(store, checkpoint, wanted)
        for number, tensor in enumerate(tensors):
            with archive.storage(number) as entry:
                for _ in spans(tensor):
                    span, body = await anext(pieces)
                    entry.write(body)
                    written(span.nbytes)
        await pieces.aclose()
        archive.end()


def pickle_of(tree: Any, state: State, path: str = "") -> tuple[bytes, list[Tensor]]:
    """(data.pkl of a tree, which is at ``path`` of the state; the tensors of storage 0, 1, …). Raises InterchangeError."""
    writer = Writer()
    numbers: dict[str, int] = {}
    tensors: list[Tensor] = []

    def other(leaf: Any, path: str) -> None:
        if not isinstance(leaf, TensorRef):
            raise InterchangeError(f"a {type(leaf).__name__} can't be exported path={path!r:.200}")
        tensor = state.tensor(leaf)
        if leaf.fqn not in numbers:
            numbers[leaf.fqn] = len(tensors)
            tensors.append(tensor)
        write_tensor(writer, numbers[leaf.fqn], tensor.dtype, tensor.shape)

    writer.value(tree, path, other)
    return writer.finished(), tensors


def write_tensor(writer: Writer, number: int, dtype: str, shape: tuple[int, ...]) -> None:
    """A row-major tensor that is all of storage ``number``."""
    count = 1
    for size in shape:
        count *= size
    storage = STORAGES.get(dtype)
    writer.name("torch._utils", "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3")
    writer.mark()
    writer.mark()
    writer.text("storage")
    if storage:
        writer.name("torch", storage)
    else:
        writer.name("torch.storage", UNTYPED)
    writer.text(str(number))
    writer.text("cpu")
    writer.integer(count if storage else count * item_bytes(dtype))
    writer.close(b"tQ")
    writer.integer(0)
    writer.row(shape)
    writer.row(strides_of(shape))
    writer.flag(False)
    writer.empty_ordered()
    if not storage:
        writer.dtype(dtype)
    writer.close(b"tR")


class Archive:
    """A zip as torch writes it, at the place where ``file`` stands."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._start = file.tell()
        self._zip = zipfile.ZipFile(_Shifted(file, self._start), "w", zipfile.ZIP_STORED)  # type: ignore[call-overload]
        self._name = name

    def begin(self, pickle: bytes) -> None:
        """The tree first."""
        self._small("data.pkl", pickle)
        self._small("byteorder", b"little")

    def storage(self, number: int) -> IO[bytes]:
        """A file for a storage's bytes; close it before the next one is begun."""
        name = f"{self._name}/data/{number}"
        info = zipfile.ZipInfo(name, _DATE)
        at = self._file.tell() - self._start + _LOCAL_HEADER + len(name) + _ZIP64_EXTRA + 4
        padding = -at % _ALIGN
        info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        entry: IO[bytes] = self._zip.open(info, "w", force_zip64=True)
        return entry

    def end(self) -> None:
        """The format's version last."""
        self._small("version", b"3\n")

    def _small(self, name: str, body: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(f"{self._name}/{name}", _DATE), body)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()


class _Shifted:
    """A file of which the first ``start`` bytes aren't there."""

    def __init__(self, file: IO[bytes], start: int) -> None:
        self._file, self._start = file, start

    def write(self, body: Any) -> int:
        return self._file.write(body)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset + (self._start if whence == 0 else 0), whence) - self._start

    def flush(self) -> None:
        self._file.flush()

    def seekable(self) -> bool:
        return True
