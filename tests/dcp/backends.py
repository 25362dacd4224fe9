"""What every flow runs on: ckptd and torch's own file system, by the same names; and what makes their results comparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter
from torch.distributed.tensor import DTensor

from ckptd_client.dcp import CkptdReader, CkptdWriter

JOB = "dcp"


@dataclass
class Backend:
    """Checkpoints by name. ``ours``: in a ckptd job, where a name is a step from ``first`` on; else in directories."""

    ours: bool
    directory: Path
    first: int
    steps: dict[str, int] = field(default_factory=dict)

    def _step(self, name: str) -> int:
        return self.steps.setdefault(name, self.first + len(self.steps))

    def id(self, name: str) -> str:
        """As dcp.save's checkpoint_id."""
        return f"{JOB}/{self._step(name)}" if self.ours else str(self.directory / name)

    def writer(self, name: str, **only_files: Any) -> StorageWriter:
        if self.ours:
            return CkptdWriter(JOB, step=self._step(name))
        return FileSystemWriter(self.directory / name, **only_files)

    def reader(self, name: str) -> StorageReader:
        return CkptdReader(JOB, step=self._step(name)) if self.ours else FileSystemReader(self.directory / name)


def plain(value: Any) -> Any:
    """A value in a form that `==` compares: tensors as (dtype, shape, bytes), DTensors by what this rank has of them."""
    if isinstance(value, DTensor):
        return ("dtensor", str(value.placements), tuple(value.shape), plain(value.to_local()))
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two plain values differ, for people."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if key not in a or key not in b:
                yield f"{path}.{key} is on one side only"
            else:
                yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for at, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{at}]")
    elif a != b:
        yield f"{path}: {str(a)[:200]} != {str(b)[:200]}"
