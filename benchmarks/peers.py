"""Who is measured, inside a rank: a bare copy, PUT or GET as the limit, ckptd, and what others use instead.

`start` is what a trainer would call, `finish` returns when it is in the store, `load` gives back what lies there. S3 is found
through the environment (`Stage.environment`). Peers are as their users have them; what is tuned says so in its name.
"""

from __future__ import annotations

import mmap
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

State = dict[str, torch.Tensor]
_POPULATE_WRITE = 23
_WAIT_SECONDS = 300.0
# What FACTS found fastest; ckptd's own store has the same.
TUNED: dict[str, Any] = {
    "config_kwargs": {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False},
    }
}


class Contender(Protocol):
    """One of those that are compared."""

    name: str

    def before(self) -> None:
        """Not timed: what makes room for the next round."""

    def start(self, number: int) -> None:
        """Save the state as it is; it may change afterwards."""

    def finish(self) -> None:
        """Wait until it is durable. May be called twice."""

    def load(self, state: State) -> bool:
        """Fill ``state`` with what was saved last; False where that can't be."""

    def close(self) -> None:
        """End what it runs."""


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def empty_like(state: State) -> State:
    """The same shapes, other values."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def remove(path: str) -> None:
    """Remove what a peer wrote in an earlier round."""
    if dist.get_rank() == 0:
        import s3fs

        fs = s3fs.S3FileSystem(**TUNED, use_listings_cache=False)
        if fs.exists(path):
            fs.rm(path, recursive=True)
        empty_trash()


def empty_trash() -> None:
    """MinIO keeps what was deleted for five minutes; on tmpfs it would fill this machine's memory."""
    for deleted in Path(os.environ["BENCH_TRASH"]).glob("*"):
        shutil.rmtree(deleted, ignore_errors=True)


class Memcpy:
    """The same bytes into shared memory that is mapped and warm."""

    name = "memcpy"

    def __init__(self, state: State) -> None:
        self._from = [local_of(tensor) for tensor in state.values()]
        size = sum(tensor.nbytes for tensor in self._from)
        fd = os.memfd_create("bench")
        os.posix_fallocate(fd, 0, size)
        self._map = mmap.mmap(fd, size)
        self._map.madvise(_POPULATE_WRITE)
        os.close(fd)
        flat = torch.frombuffer(self._map, dtype=torch.uint8)
        parts = torch.split(flat, [tensor.nbytes for tensor in self._from])
        pairs = zip(parts, self._from, strict=True)
        self._to = [part.view(tensor.dtype).view(tensor.shape) for part, tensor in pairs]

    def before(self) -> None: ...

    def start(self, number: int) -> None:
        for to, source in zip(self._to, self._from, strict=True):
            to.copy_(source)

    def finish(self) -> None: ...

    def load(self, state: State) -> bool:
        return False

    def close(self) -> None: ...


class Ckptd:
    """`save(state, step)` to one deployment: ``where`` is a `stage.Where` as a dict."""

    def __init__(self, state: State, where: dict[str, str], name: str = "ckptd") -> None:
        import ckptd_client

        self.name = name
        self._state = state
        self._ckpt = ckptd_client.connect(where["job"], socket=Path(where["socket"]))
        self._handle: ckptd_client.Handle | None = None

    def before(self) -> None:
        """Its coordinator deletes all but the newest commit."""
        if dist.get_rank() == 0:
            empty_trash()

    def start(self, number: int) -> None:
        self._handle = self._ckpt.save(self._state, number + 1)

    def finish(self) -> None:
        if self._handle is not None:
            self._handle.wait(_WAIT_SECONDS)

    def load(self, state: State) -> bool:
        """False where it has saved: a world restores what it was told when it formed, so a new one has to ask."""
        return self._handle is None and self._ckpt.load(state) > 0

    def close(self) -> None:
        self._ckpt.close()


class Dcp:
    """torch's distributed checkpoint through a storage of one's choice: `save`, or `async_save` with a thread or a process.

    The process has the cached stager in shared memory, which is torch's fastest; not pinned where there is no device.
    """

    def __init__(self, name: str, state: State, storage: Storage, executor: Literal["thread", "process"] | None = None) -> None:
        self.name = name
        self._state = state
        self._storage = storage
        self._executor = executor
        self._stager = _stager() if executor == "process" else None
        self._upload: Future[Any] | None = None

    def before(self) -> None:
        self._storage.clear()

    def start(self, number: int) -> None:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save

        writer = self._storage.writer(number)
        if self._executor is None:
            save(self._state, storage_writer=writer)
            return
        kind = AsyncCheckpointerType.PROCESS if self._executor == "process" else AsyncCheckpointerType.THREAD
        upload = async_save(self._state, storage_writer=writer, async_checkpointer_type=kind, async_stager=self._stager)
        assert isinstance(upload, Future)
        self._upload = upload

    def finish(self) -> None:
        if self._upload is not None:
            self._upload.result(_WAIT_SECONDS)

    def load(self, state: State) -> bool:
        from torch.distributed.checkpoint.state_dict_loader import load

        load(state, storage_reader=self._storage.reader())
        return True

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


def _stager() -> Any:
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    return DefaultStager(
        StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False)
    )


class Storage(Protocol):
    """Where DCP writes: below a place of its own a new one for each round, the earlier ones removed by `clear`."""

    def writer(self, number: int) -> Any: ...

    def reader(self) -> Any: ...

    def clear(self) -> None: ...


class FsspecStorage:
    """torch's FsspecWriter over s3fs, as it comes or ``tuned``."""

    def __init__(self, url: str, *, tuned: bool) -> None:
        self._top = url
        self._options = TUNED if tuned else {}
        self._path = ""

    def writer(self, number: int) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        self._path = f"{self._top}/{number}"
        return FsspecWriter(self._path, **self._options)

    def reader(self) -> Any:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(self._path, **self._options)

    def clear(self) -> None:
        if self._path:
            remove(self._path)


class S3TorchStorage:
    """Amazon's s3torchconnector: its writer and reader for DCP, in their own default settings."""

    def __init__(self, url: str) -> None:
        self._top = url
        self._path = ""

    def writer(self, number: int) -> Any:
        from s3torchconnector.dcp import S3StorageWriter

        self._path = f"{self._top}/{number}"
        return S3StorageWriter(_region(), self._path, s3client_config=_by_path())

    def reader(self) -> Any:
        from s3torchconnector.dcp import S3StorageReader

        return S3StorageReader(_region(), self._path, s3client_config=_by_path())

    def clear(self) -> None:
        if self._path:
            remove(self._path)


def _region() -> str:
    return os.environ["AWS_DEFAULT_REGION"]


def _by_path() -> Any:
    """A bucket has no host name of its own here."""
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(force_path_style=True)


class FileStorage:
    """torch's own FileSystemWriter, into a directory on tmpfs: for figures in which the store must not be the limit."""

    def __init__(self, directory: str) -> None:
        self._top = Path(directory)
        self._path: Path | None = None

    def writer(self, number: int) -> Any:
        from torch.distributed.checkpoint import FileSystemWriter

        self._path = self._top / str(number)
        return FileSystemWriter(self._path, sync_files=False)

    def reader(self) -> Any:
        from torch.distributed.checkpoint import FileSystemReader

        assert self._path is not None
        return FileSystemReader(self._path)

    def clear(self) -> None:
        if dist.get_rank() == 0 and self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)


class TorchSave:
    """`torch.save` of this rank's part into a file on tmpfs."""

    name = "torch.save"

    def __init__(self, state: State, directory: str) -> None:
        self._state = state
        self._path = Path(directory) / f"torch-{dist.get_rank()}.pt"

    def before(self) -> None: ...

    def start(self, number: int) -> None:
        torch.save({name: local_of(tensor) for name, tensor in self._state.items()}, self._path)

    def finish(self) -> None: ...

    def load(self, state: State) -> bool:
        for name, tensor in torch.load(self._path, weights_only=True).items():
            local_of(state[name]).copy_(tensor)
        return True

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
