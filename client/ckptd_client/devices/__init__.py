"""All code that knows about devices: over torch.accelerator; what it doesn't have, over torch.cuda."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ckptd_client.devices.moves import send
from ckptd_client.devices.outgoing import Outgoing
from ckptd_client.devices.pinned import Pinned, Runtime, cuda_runtime

if TYPE_CHECKING:
    import torch

__all__ = [
    "Outgoing",
    "Pinned",
    "Runtime",
    "capturing",
    "cuda_runtime",
    "rng_state",
    "send",
    "set_rng_state",
    "synchronize",
]


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait until everything queued on these devices is done, copies to the arena included. CPU needs nothing."""
    import torch

    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


def capturing() -> bool:
    """Whether this thread records a CUDA graph: nothing runs then, and a look at a device would break the recording."""
    import torch

    cuda: Any = torch.cuda
    return bool(cuda.is_initialized() and cuda.is_current_stream_capturing())


def _module() -> Any:
    """torch's module of the accelerator in use (torch.cuda, torch.xpu, …), or None when none has been used yet."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module = getattr(torch, found.type, None) if found is not None else None
    # asking a device that nobody uses for its state would start it, which costs memory
    return module if module is not None and getattr(module, "is_initialized", lambda: True)() else None


def rng_state() -> tuple[str, torch.Tensor] | None:
    """(device type, RNG state) of this process's current accelerator; None without one."""
    import torch

    module = _module()
    found = torch.accelerator.current_accelerator() if module is not None else None
    return None if found is None else (found.type, module.get_rng_state())


def set_rng_state(kind: str, state: torch.Tensor) -> bool:
    """Set it on the current accelerator; False when that is of another kind."""
    import torch

    module = _module()
    found = torch.accelerator.current_accelerator() if module is not None else None
    if found is None or found.type != kind:
        return False
    module.set_rng_state(state)
    return True
