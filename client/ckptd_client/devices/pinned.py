"""Locking the pages of the arena, so that a CUDA device writes to them by itself while the host does something else."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from ckptd_client.errors import ResourceError

if TYPE_CHECKING:
    import torch

_PORTABLE: Final = 1  # cudaHostRegisterPortable: for every device that this process uses


class Runtime(Protocol):
    """What is used of CUDA. Both return an error's code, 0 for none."""

    def register(self, address: int, count: int, flags: int) -> int:
        """Lock pages."""

    def unregister(self, address: int) -> int:
        """Let them go."""


class _Cuda:
    """The runtime that torch was built with (CUDA's, or HIP's under its name)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, count: int, flags: int) -> int:
        return self._call("cudaHostRegister", address, count, flags)

    def unregister(self, address: int) -> int:
        return self._call("cudaHostUnregister", address)

    def _call(self, name: str, *arguments: int) -> int:
        import torch

        cuda: Any = torch.cuda
        with torch.cuda.device(self._device):  # else a thread that comes here first makes a context on device 0, of some 100 MB
            code = int(getattr(cuda.cudart(), name)(*arguments))
            if code:
                self._forget_error()
        return code

    def _forget_error(self) -> None:
        """The runtime keeps a failed call's code for who asks next, and torch asks after each launch: the trainer's next would
        fail for it. torch has no way to take it back, but a launch of our own.
        """
        import torch

        try:
            torch.ones(1, device=self._device)
        except RuntimeError:
            pass  # there it was


def cuda_runtime(device: torch.device) -> Runtime:
    """torch's, called in the context of ``device``."""
    return _Cuda(device)


class Pinned:
    """A mapping whose pages are locked for as long as this lives. It keeps the mapping."""

    def __init__(self, mapping: mmap.mmap, runtime: Runtime) -> None:
        """Takes tenths of a second per GiB. Raises ResourceError when the pages can't be locked; the mapping is as it was."""
        import torch

        # In one piece: a copy must not cross from one registration into the next, and no page may be part of two.
        whole = torch.frombuffer(mapping, dtype=torch.uint8)
        address, count = whole.data_ptr(), whole.numel()
        try:
            code = runtime.register(address, count, _PORTABLE)
        except RuntimeError as error:
            raise ResourceError(f"pages of shared memory can't be locked: {error} bytes={count}") from error
        if code:
            raise ResourceError(f"pages of shared memory can't be locked bytes={count} cuda_error={code}")
        # The finalizer holds the mapping: what is unmapped while it is registered stays registered, under an address that
        # the next mapping may get.
        release = weakref.finalize(self, _unregister, runtime, mapping, address, os.getpid())
        release.atexit = False  # the end of the process does it, and CUDA may be gone by then


def _unregister(runtime: Runtime, mapping: mmap.mmap, address: int, process: int) -> None:
    if os.getpid() == process:  # a forked child can't use CUDA, and has no such mapping
        runtime.unregister(address)
