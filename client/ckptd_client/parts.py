"""What the state of a registered object is: a tree whose names don't depend on how, or on how many ranks, a module is run.

A module's state is that of its state_dict(), under the names that its parameters have without DistributedDataParallel,
torch.compile and checkpoint wrappers. An optimizer's state goes by the names of its parameters, if all of them belong to
registered modules: ``state`` maps the name to the parameter's state, and ``params`` of a group are names, one a line. So it
finds its parameters again in a pipeline of other stages. Otherwise it goes by their numbers, as torch has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ckptd_client.errors import UnsupportedStateError
from ckptd_client.regions import check_known, is_dtensor, is_fsdp1
from ckptd_client.scopes import Scope
from ckptd_client.tree import Part
from ckptd_client.typed import join

if TYPE_CHECKING:
    import torch

_WRAPPERS: Final = frozenset(("_orig_mod", "_checkpoint_wrapped_module"))
"""Segments that torch.compile and activation checkpointing put into names."""


def unwrap(module: Any) -> Any:
    """The module below DistributedDataParallel, torch.compile and a checkpoint wrapper."""
    import torch

    while True:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        elif isinstance(getattr(module, "_checkpoint_wrapped_module", None), torch.nn.Module):
            module = module._checkpoint_wrapped_module
        else:
            return module


def plain_name(key: str) -> str:
    """A key of a module's state dict without the marks of wrappers around inner modules."""
    if "_orig_mod" not in key and "_checkpoint_wrapped_module" not in key:
        return key
    return ".".join(segment for segment in key.split(".") if segment not in _WRAPPERS)


class Names:
    """The names of parameters: those of registered modules, with the part's name in front."""

    def __init__(self, modules: Sequence[tuple[str, torch.nn.Module]] = ()) -> None:
        self._modules = modules
        self._of: dict[int, tuple[torch.Tensor, str]] = {}  # by id; the tensor is kept so that its id stays its own
        self._found: dict[str, tuple[list[int], list[str] | None]] = {}  # by optimizer

    def with_modules(self, parts: Mapping[str, Any]) -> Names:
        """These, and those of the modules among ``parts``."""
        import torch

        new = [(name, thing) for name, thing in parts.items() if isinstance(thing, torch.nn.Module)]
        return Names([*self._modules, *new])

    def _look(self) -> None:
        self._of.clear()
        self._found.clear()
        for name, module in self._modules:
            for key, parameter in unwrap(module).named_parameters():
                self._of.setdefault(id(parameter), (parameter, join(name, plain_name(key))))

    def of(self, name: str, optimizer: torch.optim.Optimizer) -> list[str] | None:
        """Those of an optimizer's parameters in order, or None when some have none."""
        ids = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        known = self._found.get(name)
        if known is None or known[0] != ids:
            if not all(one in self._of for one in ids):
                self._look()  # parameters may have been exchanged since
            names = [self._of[one][1] for one in ids if one in self._of]
            usable = len(names) == len(ids) == len(set(names)) and not any("\n" in one for one in names)
            known = self._found[name] = (ids, names if usable else None)
        return known[1]


def part_of(name: str, thing: Any, scope: Scope, names: Names) -> Part:
    """The state of a registered object. A module's buffers are marked as whole: they differ from rank to rank (PROTOCOLS 2).

    Raises UnsupportedStateError for an optimizer whose state can't be told apart.
    """
    import torch

    whole: frozenset[str] = frozenset()
    if isinstance(thing, torch.nn.Module):
        module = unwrap(thing)
        tree: Any = {plain_name(key): value for key, value in module.state_dict().items()}
        whole = frozenset(plain_name(key) for key, _ in module.named_buffers(remove_duplicate=False))
    elif isinstance(thing, torch.optim.Optimizer):
        tree = _optimizer_tree(name, thing, scope, names)
    else:
        tree = thing.state_dict()
    label = name + scope.label
    return Part(label, tree, scope.stored, whole, scope.holders, label + scope.piece)


def _optimizer_tree(name: str, optimizer: torch.optim.Optimizer, scope: Scope, names: Names) -> Any:
    state = optimizer.state_dict()
    known = names.of(name, optimizer)
    groups = state.get("param_groups")
    numbers = [number for group in groups for number in group["params"]] if groups is not None else None
    if known is None or numbers != list(range(len(known))):
        if scope.piece:
            reason = "an optimizer of a part of the model needs names for its parameters: register their modules, too"
            raise UnsupportedStateError(name, type(optimizer).__qualname__, reason)
        return state
    assert groups is not None
    entries: Mapping[Any, Any] = state["state"]
    return {
        **state,
        "state": {known[key] if type(key) is int else key: value for key, value in entries.items()},
        "param_groups": [{**group, "params": "\n".join(known[number] for number in group["params"])} for group in groups],
    }


def check(name: str, thing: Any) -> None:
    """Raise UnsupportedStateError for what looks like state and isn't, or will have a state that can't be stored."""
    import torch

    if isinstance(thing, torch.nn.Module):
        for key, tensor in (*unwrap(thing).named_parameters(), *unwrap(thing).named_buffers()):
            check_known(tensor, join(name, plain_name(key)))
    if isinstance(thing, torch.optim.Optimizer):
        if hasattr(thing, "_subclass_zeros") and any(
            is_dtensor(one) for group in thing.param_groups for one in group["params"]
        ):
            reason = "its low-bit states of sharded parameters are quantised in blocks of each shard, which fit no other layout"
            raise UnsupportedStateError(name, type(thing).__qualname__, f"{reason}; use DDP, or an optimizer of 16 or 32 bits")
        for group in thing.param_groups:
            if any(map(is_fsdp1, group["params"])):
                reason = (
                    "under FSDP1 an optimizer holds pieces of flattened parameters; use FSDP2 (fully_shard), or save() what"
                )
                raise UnsupportedStateError(name, type(thing).__qualname__, f"{reason} FSDP.optim_state_dict() returns")
