"""Who is measured, inside a rank: a bare copy or PUT as the limit, ckptd, and torch's own checkpoint.

`start` is what a trainer would call, `finish` returns when it is in the store, `restored` is the digest of what lies there.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

State = dict[str, torch.Tensor]
_TENSORS = 16
_WIDTH = 1024
_POPULATE_WRITE = 23
_PUT_BYTES = 16 << 20
# What FACTS found fastest; ckptd's own store has the same.
TUNED: dict[str, Any] = {
    "config_kwargs": {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False},
    }
}


def remove(path: str) -> None:
    """Remove what an earlier round wrote. MinIO's memory is this machine's, and it would keep the deleted for five minutes."""
    if dist.get_rank() == 0:
        import s3fs

        fs = s3fs.S3FileSystem(**TUNED, use_listings_cache=False)
        if fs.exists(path):
            fs.rm(path, recursive=True)
        for deleted in Path(os.environ["BENCH_TRASH"]).glob("*"):
            shutil.rmtree(deleted, ignore_errors=True)


class Contender(Protocol):
    """One of those that are compared."""

    name: str

    def before(self) -> None: ...

    def start(self, number: int) -> None: ...

    def finish(self) -> None: ...

    def restored(self) -> str | None: ...

    def close(self) -> None: ...


def make_state(total_bytes: int, seed: int) -> State:
    """Few large tensors sharded on dimension 0, as FSDP2 has them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = total_bytes // (_TENSORS * _WIDTH * 4)
    local = rows // dist.get_world_size()
    torch.manual_seed(seed * 1000 + dist.get_rank())
    return {
        f"layer{i}.weight": DTensor.from_local(torch.randn(local, _WIDTH), mesh, [Shard(0)], run_check=False)
        for i in range(_TENSORS)
    }


def change(state: State) -> None:
    """Let it differ from what was saved before."""
    for tensor in state.values():
        local_of(tensor).add_(1.0)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def digest(state: State) -> str:
    """sha256 of this rank's bytes, through nothing of ours."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(local_of(state[name]).numpy().data.cast("B"))
    return found.hexdigest()


def empty_like(state: State) -> State:
    """The same shapes, other values."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


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
        flat = torch.frombuffer(self._map, dtype=torch.float32)
        parts = torch.split(flat, [tensor.numel() for tensor in self._from])
        self._to = [part.view(tensor.shape) for part, tensor in zip(parts, self._from, strict=True)]

    def before(self) -> None: ...

    def start(self, number: int) -> None:
        for to, source in zip(self._to, self._from, strict=True):
            to.copy_(source)

    def finish(self) -> None: ...

    def restored(self) -> str | None:
        return None

    def close(self) -> None: ...


class BarePut:
    """The same bytes as objects of 16 MiB, by the store library alone, several in flight; they lie ready beforehand."""

    name = "s3fs put"

    def __init__(self, state: State, bucket: str) -> None:
        import s3fs

        self._fs = s3fs.S3FileSystem(**TUNED)
        rank = dist.get_rank()
        flat = torch.cat([local_of(tensor).reshape(-1) for tensor in state.values()]).numpy().tobytes()
        starts = range(0, len(flat), _PUT_BYTES)
        self._objects = {f"{bucket}/bare/{rank}-{i}": flat[start : start + _PUT_BYTES] for i, start in enumerate(starts)}

    def before(self) -> None: ...

    def start(self, number: int) -> None:
        self._fs.pipe(self._objects, batch_size=4)

    def finish(self) -> None: ...

    def restored(self) -> str | None:
        return None

    def close(self) -> None: ...


class Ckptd:
    """`save(state, step)`; the restored digest is taken by another world, as a restart would."""

    name = "ckptd"

    def __init__(self, state: State, bucket: str) -> None:
        import ckptd_client

        self._state = state
        self._data = f"{bucket}/ckptd/{os.environ['CKPTD_JOB']}/data"
        self._ckpt = ckptd_client.connect()
        self._handle: ckptd_client.Handle | None = None

    def before(self) -> None:
        """ckptd collects nothing yet."""
        remove(self._data)

    def start(self, number: int) -> None:
        self._handle = self._ckpt.save(self._state, number + 1)

    def finish(self) -> None:
        assert self._handle is not None
        self._handle.wait(300.0)

    def restored(self) -> str | None:
        return None

    def close(self) -> None:
        self._ckpt.close()


class Dcp:
    """torch's `async_save` with the process executor and a cached stager in shared memory, or the plain `save`."""

    def __init__(self, state: State, bucket: str, asynchronous: bool) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.name = "dcp async_save" if asynchronous else "dcp save"
        self._state = state
        self._bucket = f"{bucket}/{'async' if asynchronous else 'sync'}"
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
        )
        self._stager = DefaultStager(options) if asynchronous else None
        self._upload: Future[Any] | None = None
        self._path = ""

    def start(self, number: int) -> None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save

        self._path = f"{self._bucket}/{number}"
        writer = FsspecWriter(self._path, **TUNED)
        if self._stager is None:
            save(self._state, storage_writer=writer)
            return
        kind = AsyncCheckpointerType.PROCESS
        upload = async_save(self._state, storage_writer=writer, async_checkpointer_type=kind, async_stager=self._stager)
        assert isinstance(upload, Future)
        self._upload = upload

    def finish(self) -> None:
        if self._upload is not None:
            self._upload.result(300.0)

    def restored(self) -> str | None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
        from torch.distributed.checkpoint.state_dict_loader import load

        found = empty_like(self._state)
        load(found, storage_reader=FsspecReader(self._path, **TUNED))
        return digest(found)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()

    def before(self) -> None:
        """DCP collects nothing either."""
        if self._path:
            remove(self._path)
