"""ckptd in the trainer: ``connect()``, ``register()``, ``restore()``, ``step()``, ``close()``.

    with ckptd_client.connect() as ckpt:
        ckpt.register(model=model, optimizer=optimizer)
        for n in ckpt.steps(1000):
            ...

Importing this imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptd_client import errors

if TYPE_CHECKING:
    from ckptd_client.checkpointer import Checkpointer, Handle, connect
    from ckptd_client.scopes import over, per_index, per_rank

__all__ = ["Checkpointer", "Handle", "connect", "errors", "over", "per_index", "per_rank"]


def __getattr__(name: str) -> Any:
    if name in ("Checkpointer", "Handle", "connect"):
        from ckptd_client import checkpointer

        return getattr(checkpointer, name)
    if name in ("over", "per_index", "per_rank"):
        from ckptd_client import scopes

        return getattr(scopes, name)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.CkptdError):
        return kind
    raise AttributeError(f"module 'ckptd_client' has no attribute {name!r}")
