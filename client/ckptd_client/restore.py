"""From a checkpoint back into live state.

Three steps, so that nothing is changed before everything is known to be there: `Targets` are collected from the stored trees
and the registered parts (MissingStateError), `receive` fills memory from the daemon's ring, and then the finishers run.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckptd_client.errors import MissingStateError, UnsupportedStateError
from ckptd_client.messages import RestoreInfo, Want
from ckptd_client.parts import plain_name, unwrap
from ckptd_client.regions import dtype_name, dtype_of, is_dtensor, like_placed, local_of, region_of
from ckptd_client.typed import TensorRef, decode, join

if TYPE_CHECKING:
    import torch


class Targets:
    """What to read and where to put it."""

    def __init__(self, info: RestoreInfo, world_size: int) -> None:
        self.info = info
        self.world_size = world_size
        self.wants: list[Want] = []
        self.memory: list[torch.Tensor] = []  # flat uint8 tensors, one per want
        self.finish: list[Callable[[], None]] = []  # run in order once every byte is there
        self._stored = {fqn: (dtype, shape) for fqn, rank, dtype, shape in info.tensors if rank == -1}

    def tree(self, fqn: str) -> Any:
        """The stored object of that name. Raises MissingStateError."""
        if fqn not in self.info.objects:
            raise MissingStateError(
                f"the checkpoint has no part {fqn!r}; register the parts that were saved"
                f" step={self.info.step} has={sorted(self.info.objects)}"
            )
        return decode(self.info.objects[fqn])

    def stored(self, fqn: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """dtype and global shape. Raises MissingStateError."""
        if fqn not in self._stored:
            raise MissingStateError(f"the checkpoint has no tensor {fqn!r} step={self.info.step}")
        name, shape = self._stored[fqn]
        dtype = dtype_of(name)
        if dtype is None:
            raise MissingStateError(f"tensor {fqn!r} has a dtype that this torch lacks dtype={name}")
        return dtype, shape

    def into(self, fqn: str, tensor: torch.Tensor, path: str) -> None:
        """Fill a living tensor. Raises MissingStateError when the stored one has another shape or dtype."""
        dtype, shape = self.stored(fqn)
        if shape != tuple(tensor.shape) or dtype != tensor.dtype:
            raise MissingStateError(
                f"tensor {fqn!r} is stored as {dtype_name(dtype, fqn)} {list(shape)}, but {path!r} is"
                f" {dtype_name(tensor.dtype, path)} {list(tensor.shape)}"
            )
        region = region_of(tensor, self.world_size, path)
        self._want(fqn, dtype, shape, region.offsets, region.sizes, local_of(tensor))

    def fresh(self, fqn: str) -> torch.Tensor:
        """A new tensor on CPU, to be filled with the whole stored one."""
        import torch

        dtype, shape = self.stored(fqn)
        made = torch.empty(shape, dtype=dtype)
        self._want(fqn, dtype, shape, (0,) * len(shape), shape, made)
        return made

    def _want(
        self,
        fqn: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        offsets: tuple[int, ...],
        sizes: tuple[int, ...],
        local: torch.Tensor,
    ) -> None:
        import torch

        if math.prod(sizes) == 0:
            return
        direct = local.is_contiguous() and not local.is_conj() and not local.is_neg()
        memory = local if direct else torch.empty(sizes, dtype=dtype, device=local.device)
        if not direct:
            self.finish.append(lambda: _copy(local, memory))
        self.wants.append(Want(fqn, -1, dtype_name(dtype, fqn), shape, offsets, sizes))
        self.memory.append(memory.detach().reshape(-1).view(torch.uint8))


def _copy(destination: torch.Tensor, source: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        destination.copy_(source)


def materialise(targets: Targets, node: Any) -> Any:
    """A stored tree with new CPU tensors in the places of its references."""
    if isinstance(node, TensorRef):
        return targets.fresh(node.fqn)
    if type(node) in (dict, OrderedDict):
        return type(node)((key, materialise(targets, part)) for key, part in node.items())
    if type(node) in (list, tuple):
        return type(node)(materialise(targets, part) for part in node)
    return Counter(node) if type(node) is Counter else node


def merge(targets: Targets, given: Any, node: Any, path: str) -> Any:
    """``node`` with the tensors of ``given`` in their places, where it has them. ``given`` itself is changed at the end.

    Raises MissingStateError for what ``given`` has and the checkpoint lacks. Entries that only the checkpoint has are added
    (an optimizer that hasn't stepped yet has none), their tensors whole on CPU.
    """
    import torch

    if isinstance(given, torch.Tensor):
        if not isinstance(node, TensorRef):
            raise MissingStateError(
                f"the checkpoint has no tensor for {path!r}, but a {type(node).__name__} step={targets.info.step}"
            )
        targets.into(node.fqn, given, path)
        return given
    if isinstance(given, dict) and isinstance(node, dict) and not isinstance(given, Counter):
        for key in given:
            if key not in node:
                raise MissingStateError(f"the checkpoint has no entry {f'{path}.{key}'.lstrip('.')!r} step={targets.info.step}")
        for key in node:
            part = merge(targets, given.get(key), node[key], f"{path}.{key}".lstrip("."))
            targets.finish.append(lambda key=key, part=part: given.__setitem__(key, part))  # type: ignore[misc]
        return given
    if type(given) is list and type(node) is list and len(given) == len(node):
        for at, part in enumerate(node):
            merged = merge(targets, given[at], part, f"{path}.{at}".lstrip("."))
            targets.finish.append(lambda at=at, merged=merged: given.__setitem__(at, merged))  # type: ignore[misc]
        return given
    if type(given) is tuple and type(node) is tuple and len(given) == len(node):
        return tuple(merge(targets, given[at], part, f"{path}.{at}".lstrip(".")) for at, part in enumerate(node))
    return materialise(targets, node)


def target_part(targets: Targets, name: str, thing: Any) -> None:
    """Add what a registered object needs; nothing is changed yet. Raises MissingStateError or UnsupportedStateError."""
    import torch

    tree = targets.tree(name)
    if isinstance(thing, torch.nn.Module):
        _target_module(targets, name, unwrap(thing), tree)
    elif isinstance(thing, torch.optim.Optimizer):
        _target_optimizer(targets, name, thing, tree)
    else:
        state = materialise(targets, tree)
        targets.finish.append(lambda: thing.load_state_dict(state))


def _target_module(targets: Targets, name: str, module: torch.nn.Module, tree: Any) -> None:
    import torch

    state = module.state_dict()
    names = {plain_name(key): key for key in state}
    surplus = sorted(set(tree) - set(names))
    if surplus:
        raise MissingStateError(f"the checkpoint has entries for which part {name!r} has no place: {', '.join(surplus[:5])}")
    own = {local_of(held).untyped_storage().data_ptr() for held in (*module.parameters(), *module.buffers())}
    load: dict[str, Any] = {}
    for plain, key in names.items():
        path = join(name, plain)
        if plain not in tree:
            raise MissingStateError(f"the checkpoint has no entry {path!r} step={targets.info.step}")
        value, node = state[key], tree[plain]
        if isinstance(value, torch.Tensor) != isinstance(node, TensorRef):
            raise MissingStateError(f"entry {path!r} is a tensor on one side only: in the checkpoint, or in the module")
        if not isinstance(value, torch.Tensor):
            load[key] = materialise(targets, node)
            continue
        targets.into(node.fqn, value, path)
        if local_of(value).untyped_storage().data_ptr() not in own:
            load[key] = value  # a state_dict hook made a copy; filling it would change nothing
    if load:
        targets.finish.append(lambda: (module.load_state_dict(load, strict=False), None)[1])


def _target_optimizer(targets: Targets, name: str, optimizer: torch.optim.Optimizer, tree: Any) -> None:
    saved = tree.get("param_groups") if isinstance(tree, dict) else None
    groups = [len(group["params"]) for group in optimizer.param_groups]
    stored = [len(group["params"]) for group in saved] if saved is not None else None
    if groups != stored:
        raise MissingStateError(f"optimizer {name!r} has parameter groups of {groups} parameters, the checkpoint has {stored}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, entries in tree["state"].items():
        if not 0 <= index < len(parameters):
            raise MissingStateError(
                f"the checkpoint has state for parameter {index} of optimizer {name!r}, which has {len(parameters)}"
            )
        state[index] = {
            key: _for_parameter(targets, node, parameters[index]) if isinstance(node, TensorRef) else materialise(targets, node)
            for key, node in entries.items()
        }
    rest = {key: materialise(targets, node) for key, node in tree.items() if key != "state"}
    targets.finish.append(lambda: _load_optimizer(optimizer, parameters, {**rest, "state": state}))


def _for_parameter(targets: Targets, ref: TensorRef, parameter: torch.Tensor) -> torch.Tensor:
    """A new tensor for one entry of a parameter's state: placed as the parameter is, if it has its shape."""
    import torch

    dtype, shape = targets.stored(ref.fqn)
    if not shape:
        return targets.fresh(ref.fqn)
    if shape == tuple(parameter.shape):
        made = like_placed(parameter, torch.empty_like(local_of(parameter), dtype=dtype))
        targets.into(ref.fqn, made, ref.fqn)
        return made
    if is_dtensor(parameter):
        raise UnsupportedStateError(
            ref.fqn, "DTensor", f"state of another shape than its sharded parameter's is not supported yet {shape}"
        )
    return targets.fresh(ref.fqn)


def _load_optimizer(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], state: dict[str, Any]) -> None:
    optimizer.load_state_dict(state)
    for index, entries in state["state"].items():
        for key, value in entries.items():
            loaded = optimizer.state[parameters[index]].get(key)
            # load_state_dict casts to the parameter's dtype, which would lose bits of fp32 state of bf16 parameters
            if hasattr(value, "dtype") and hasattr(loaded, "dtype") and loaded.dtype != value.dtype:
                optimizer.state[parameters[index]][key] = value.to(loaded.device)
