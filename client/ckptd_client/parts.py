"""What the state of a registered object is: a tree whose names don't depend on how a module is run."""

from __future__ import annotations

from typing import Any

from ckptd_client.tree import Part


def unwrap(module: Any) -> Any:
    """The module below DistributedDataParallel and torch.compile, so that names don't depend on how it is run."""
    import torch

    while True:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        else:
            return module


def plain_name(key: str) -> str:
    """A key of a module's state dict without torch.compile's marks on inner modules."""
    if "_orig_mod" not in key:
        return key
    return ".".join(segment for segment in key.split(".") if segment != "_orig_mod")


def part_of(name: str, thing: Any) -> Part:
    """The state of a registered object. A module's buffers are marked as whole: they differ from rank to rank (PROTOCOLS 2)."""
    import torch

    if not isinstance(thing, torch.nn.Module):
        return Part(name, thing.state_dict())
    module = unwrap(thing)
    tree = {plain_name(key): value for key, value in module.state_dict().items()}
    return Part(name, tree, whole=frozenset(plain_name(key) for key, _ in module.named_buffers(remove_duplicate=False)))
