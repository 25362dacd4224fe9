"""Locking the pages of the arena, so that a CUDA device writes to them by itself while the host does something else."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any, Final

from ckptd_client.errors import ResourceError

_PORTABLE: Final = 1  # cudaHostRegisterPortable: for every device that this process uses


class Pinned:
    """A mapping whose pages are locked for as long as this lives. It keeps the mapping."""

    def __init__(self, mapping: mmap.mmap, runtime: Any = None) -> None:
        """Takes tenths of a second per GiB. ``runtime``: by default torch's module of the CUDA (or HIP) runtime.

        Raises ResourceError when the pages can't be locked; the mapping is as it was.
        """
        import torch

        cuda: Any = torch.cuda
        # In one piece: a copy must not cross from one registration into the next, and no page may be part of two.
        whole = torch.frombuffer(mapping, dtype=torch.uint8)
        address, count = whole.data_ptr(), whole.numel()
        try:
            runtime = cuda.cudart() if runtime is None else runtime
            code = int(runtime.cudaHostRegister(address, count, _PORTABLE))
        except RuntimeError as error:
            raise ResourceError(f"pages of shared memory can't be locked: {error} bytes={count}") from error
        if code:
            _forget_error()
            raise ResourceError(f"pages of shared memory can't be locked bytes={count} cuda_error={code}")
        # The finalizer holds the mapping: what is unmapped while it is registered stays registered, under an address that
        # the next mapping may get.
        release = weakref.finalize(self, _unregister, runtime, mapping, address, os.getpid())
        release.atexit = False  # the end of the process does it, and CUDA may be gone by then


def _unregister(runtime: Any, mapping: mmap.mmap, address: int, process: int) -> None:
    # A forked child can't use CUDA, and has no such mapping.
    if os.getpid() == process and int(runtime.cudaHostUnregister(address)):
        _forget_error()


def _forget_error() -> None:
    """The runtime keeps a failed call's code for who asks next, and torch asks after each launch: the trainer's next operation
    would fail for it. torch has no way to take it back, but a launch of our own.
    """
    import torch

    cuda: Any = torch.cuda
    if cuda.is_initialized():
        try:
            torch.ones(1, device="cuda")
        except RuntimeError:
            pass  # there it was
