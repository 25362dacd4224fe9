"""Puts ckptd where torch's file system is, in every process of PyTorch's tests of DCP (`tests.dcp.pytorch`).

A directory becomes a step of the job, made of its name. With CKPTD_PLUG=files torch's own stays: what is measured against.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _fsspec_filesystem, _storage_utils, filesystem, format_utils, hf_storage
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing._internal import common_distributed, common_fsdp
from torch.testing._internal.distributed._shard import sharded_tensor
from torch.testing._internal.distributed._tensor import common_dtensor

from ckptd_client.dcp import CkptdReader, CkptdWriter
from tests.dcp.backends import JOB

_MODULES: Final = (dcp, filesystem, _storage_utils, format_utils)
_GPUS: Final = 8
_THEIRS: Final = filesystem.FileSystemWriter, filesystem.FileSystemReader
_MADE_OF_THEM: Final = _fsspec_filesystem, hf_storage  # imported before they are replaced


def _id(path: str | os.PathLike[str]) -> str:
    name = os.path.normpath(os.fspath(path))
    return f"{JOB}/{int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big')}"


class Writer(CkptdWriter):
    """Takes what FileSystemWriter takes. How files are written means nothing here."""

    def __init__(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        super().__init__(_id(path))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        super().reset(_id(checkpoint_id) if checkpoint_id else None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(_THEIRS[0].validate_checkpoint_id(checkpoint_id))


class Reader(CkptdReader):
    """Takes what FileSystemReader takes."""

    def __init__(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        super().__init__(_id(path))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        super().reset(_id(checkpoint_id) if checkpoint_id else None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(_THEIRS[1].validate_checkpoint_id(checkpoint_id))


def _plug() -> None:
    for module in _MODULES:
        module.FileSystemWriter, module.FileSystemReader = Writer, Reader  # type: ignore[attr-defined]


def _without_gpus() -> None:
    """Tests that ask for GPUs run on the CPU, in gloo; those that can't, fail with the file system as well."""

    def always(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda test: test

    for name in ("skip_if_lt_x_gpu", "requires_nccl", "requires_accelerator_dist_backend"):
        for module in (common_distributed, common_dtensor, common_fsdp):
            setattr(module, name, always)
    sharded_tensor.with_comms = functools.partial(sharded_tensor.with_comms, backend="gloo")
    start = common_dtensor.DTensorTestBase.init_pg
    common_dtensor.DTensorTestBase.init_pg = lambda self, eager, *_: start(self, eager, "gloo")  # type: ignore[method-assign]
    init = dist.init_process_group

    def init_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        init("cpu:gloo" if backend is None or "nccl" in backend else backend, *args, **{**kwargs, "device_id": None})

    dist.init_process_group = dist.distributed_c10d.init_process_group = init_gloo
    for module in (torch.cuda, torch.accelerator):
        module.device_count = lambda: _GPUS  # type: ignore[attr-defined]
    common_fsdp.DEVICE_COUNT = 4
    for module, name in ((torch.cuda, "set_device"), (torch.accelerator, "set_device_index"), (torch.cuda, "synchronize")):
        setattr(module, name, lambda *_: None)
    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    fsdp = FullyShardedDataParallel.__init__

    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        fsdp(self, *args, **{**kwargs, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = on_cpu  # type: ignore[method-assign]
    fork = multiprocessing.get_context("fork").Process  # torch is loaded: spawned ones would load it for seconds
    common_distributed.MultiProcessTestCase._spawn_processes = lambda self: self._start_processes(fork)  # type: ignore[method-assign]


if os.environ.get("CKPTD_PLUG") != "files":
    _plug()
if not torch.cuda.is_available():
    _without_gpus()
