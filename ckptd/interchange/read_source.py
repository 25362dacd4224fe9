"""What is there to be imported? By its files' names and first bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.archive import Place
from ckptd.interchange.foreign import Files, Foreign, LocalFiles, StoreFiles, check_name, whole
from ckptd.interchange.read_dcp import METADATA, read_dcp
from ckptd.interchange.read_torch import read_torch
from ckptd.interchange.safetensors import INDEX_MAX, INDEX_NAME, SUFFIX, decode_header, decode_index, header_bytes
from ckptd.store.base import Store

_INDEX_SUFFIX: Final = f"{SUFFIX}.index.json"
_ONE: Final = f"model{SUFFIX}"


def open_local(path: Path) -> tuple[Files, str | None]:
    """(its files, the one of them that is meant; None for the directory). Raises InterchangeError when nothing is there."""
    if path.is_dir():
        return LocalFiles(path), None
    if not path.is_file():
        raise InterchangeError(f"there is no file or directory to import path={path}")
    path = path.resolve()
    return LocalFiles(path.parent), path.name


async def open_url(url: str, open_at: Callable[[str], Store]) -> tuple[Files, str | None]:
    """As `open_local`, at a URL: a file if there is one of that name, else a directory. Raises what the store raises."""
    parent, _, name = url.rstrip("/").rpartition("/")
    if not parent.endswith(":/"):
        beside = StoreFiles(open_at(parent))
        if await beside.size(name) is not None:
            return beside, name
    return StoreFiles(open_at(url)), None


async def read_source(files: Files, name: str | None) -> tuple[str, dict[Any, Any]]:
    """(what it is, in words; its state dict, whose tensors are `Foreign`). Raises InterchangeError."""
    if name is None:
        for name in (METADATA, INDEX_NAME, _ONE):
            if await files.size(name) is not None:
                break
        else:
            raise InterchangeError(
                f"the directory has no {METADATA}, no {INDEX_NAME} and no {_ONE}: it is no checkpoint of a known kind; name the"
                " file if there is one"
            )
    if name == METADATA:
        return "Distributed Checkpoint", await read_dcp(files)
    if name.endswith(_INDEX_SUFFIX):
        return "sharded safetensors", await _read_sharded(files, name)
    size_bytes = await files.size(name) or 0
    start = await files.read(name, 0, min(9, size_bytes))
    if start[:4] == b"PK\3\4":
        tree = await read_torch(files, Place(name, 0, size_bytes))
        if not isinstance(tree, dict):
            raise InterchangeError(f"the file holds a {type(tree).__name__}, not a dict: save a state dict file={name!r:.200}")
        return "torch.save", tree
    if start[8:9] == b"{":
        return "safetensors", dict(await _read_tensors(files, name))
    raise InterchangeError(f"the file is neither safetensors nor a zip as torch.save writes it (since 1.6) file={name!r:.200}")


async def _read_sharded(files: Files, name: str) -> dict[str, Foreign]:
    size_bytes = await files.size(name) or 0
    if size_bytes > INDEX_MAX:
        raise InterchangeError(f"an index has {size_bytes} bytes, over {INDEX_MAX} file={name!r:.200}")
    wanted = decode_index(await files.read(name, 0, size_bytes))
    beside = {file: await _read_tensors(files, check_name(file)) for file in sorted(set(wanted.values()))}
    for tensor, file in wanted.items():
        if tensor not in beside[file]:
            raise InterchangeError(
                f"a file lacks a tensor that the index says it has tensor={tensor!r:.200} file={file!r:.200}"
            )
    surplus = {tensor for file, held in beside.items() for tensor in held if wanted.get(tensor) != file}
    if surplus:
        raise InterchangeError(f"files hold tensors that the index doesn't name tensors={sorted(surplus)[:5]!r:.300}")
    return {tensor: beside[file][tensor] for tensor, file in wanted.items()}


async def _read_tensors(files: Files, name: str) -> dict[str, Foreign]:
    size_bytes = await files.size(name)
    if size_bytes is None:
        raise InterchangeError(f"a file of the checkpoint is missing file={name!r:.200}")
    try:
        length = header_bytes(await files.read(name, 0, min(8, size_bytes)), size_bytes)
        entries = decode_header(await files.read(name, 8, 8 + length), size_bytes)
    except InterchangeError as error:
        raise InterchangeError(f"{error} file={name!r:.200}") from None
    return {entry.name: whole(entry.dtype, entry.shape, name, entry.offset) for entry in entries}
