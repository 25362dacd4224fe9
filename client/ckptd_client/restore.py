"""From a checkpoint back into live state.

Three steps, so that nothing is changed before everything is known to be there: `Targets` are collected from the stored trees
and the registered parts (MissingStateError), `receive` fills memory from the daemon's ring, and then the finishers run.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckptd_client import compound
from ckptd_client.errors import MissingStateError
from ckptd_client.messages.restoring import RestoreInfo, Want
from ckptd_client.parts import Names, plain_name, unwrap
from ckptd_client.regions import blocks_of, dtype_name, dtype_of, like_placed, like_replicated, local_of, regions_of
from ckptd_client.scopes import Scope, stored_objects, world
from ckptd_client.structure import memory
from ckptd_client.typed import Compound, TensorRef, decode, join
from ckptd_client.union import union

if TYPE_CHECKING:
    import torch


class Targets:
    """What to read and where to put it."""

    def __init__(self, info: RestoreInfo, rank: int, world_size: int) -> None:
        self.info = info
        self.rank = rank
        self.world_size = world_size
        self._scope = world(world_size)  # of the part that is looked at
        self.wants: list[Want] = []
        self.memory: list[torch.Tensor] = []  # flat uint8 tensors, one per want
        self.finish: list[Callable[[], None]] = []  # run in order once every byte is there
        self._stored = {(fqn, owner): (dtype, shape) for fqn, owner, dtype, shape in info.tensors if owner in (-1, rank)}
        self._filled: dict[object, str] = {}  # FQN by memory

    def tree(self, name: str, scope: Scope | None = None) -> Any:
        """The stored tree of that part, all pieces of it in one; what is asked for next is of this part.

        Raises MissingStateError, also when it was saved in another scope.
        """
        self._scope = scope or world(self.world_size)
        return union(name, [decode(body) for body in stored_objects(self.info, name, self._scope, self.world_size)])

    @property
    def _owner(self) -> int:
        return self.rank if self._scope.kind == "rank" else -1

    def stored(self, fqn: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """dtype and global shape. Raises MissingStateError."""
        if (fqn, self._owner) not in self._stored:
            raise MissingStateError(f"the checkpoint has no tensor {fqn!r} step={self.info.step}")
        name, shape = self._stored[fqn, self._owner]
        dtype = dtype_of(name)
        if dtype is None:
            raise MissingStateError(f"tensor {fqn!r} has a dtype that this torch lacks dtype={name}")
        return dtype, shape

    def into(self, fqn: str, tensor: torch.Tensor, path: str) -> None:
        """Fill a living tensor. Raises MissingStateError when the stored one has another shape or dtype, or when the same
        memory is to hold another stored tensor, too.
        """
        dtype, shape = self.stored(fqn)
        if shape != tuple(tensor.shape) or dtype != tensor.dtype:
            raise MissingStateError(
                f"tensor {fqn!r} is stored as {dtype_name(dtype, fqn)} {list(shape)}, but {path!r} is"
                f" {dtype_name(tensor.dtype, path)} {list(tensor.shape)}"
            )
        regions = regions_of(tensor, self._scope.holders, self.rank, path)
        for region, block in zip(regions, blocks_of(tensor), strict=True):
            if block.numel() and self._is_new(fqn, block, path):
                self._want(fqn, dtype, shape, region.offsets, region.sizes, block)

    def fill(self, node: TensorRef | Compound, tensor: torch.Tensor, path: str) -> None:
        """As `into`, also for a tensor that is made of others."""
        if isinstance(node, TensorRef):
            self.into(node.fqn, tensor, path)
            return
        for name, inner in compound.inner_of(node, tensor, path).items():
            self.fill(node.tensors[name], inner, join(path, name))

    def _is_new(self, fqn: str, block: torch.Tensor, path: str) -> bool:
        key = memory(block)
        if key not in self._filled:
            self._filled[key] = fqn
            return True
        first = self._filled[key]
        if first != fqn:
            raise MissingStateError(
                f"{path!r} shares its memory with another entry here, but not in the checkpoint: there are two tensors,"
                f" {first!r} and {fqn!r}; tie the same weights as when it was saved"
            )
        return False

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
        self.wants.append(Want(fqn, self._owner, dtype_name(dtype, fqn), shape, offsets, sizes))
        # Not reshape(-1): a single element may have any stride, and no view as bytes then.
        self.memory.append(memory.detach().as_strided((memory.numel(),), (1,)).view(torch.uint8))


def _copy(destination: torch.Tensor, source: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        destination.copy_(source)


def materialise(targets: Targets, node: Any, path: str = "") -> Any:
    """A stored tree with new CPU tensors in the places of its references; ``path`` is its own, for errors."""
    if isinstance(node, TensorRef):
        return targets.fresh(node.fqn)
    if isinstance(node, Compound):
        return compound.put_together(node, materialise(targets, node.tensors), path)
    if type(node) in (dict, OrderedDict):
        return type(node)((key, materialise(targets, part, join(path, key))) for key, part in node.items())
    if type(node) in (list, tuple):
        return type(node)(materialise(targets, part, join(path, at)) for at, part in enumerate(node))
    return Counter(node) if type(node) is Counter else node


def merge(targets: Targets, given: Any, node: Any, path: str) -> Any:
    """``node`` with the tensors of ``given`` in their places, where it has them. ``given`` itself is changed at the end.

    Raises MissingStateError for what ``given`` has and the checkpoint lacks. Entries that only the checkpoint has are added
    (an optimizer that hasn't stepped yet has none), their tensors whole on CPU.
    """
    import torch

    if isinstance(given, torch.Tensor):
        if not isinstance(node, (TensorRef, Compound)):
            raise MissingStateError(
                f"the checkpoint has no tensor for {path!r}, but a {type(node).__name__} step={targets.info.step}"
            )
        targets.fill(node, given, path)
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
    return materialise(targets, node, path)


def target_part(targets: Targets, name: str, thing: Any, scope: Scope, names: Names) -> None:
    """Add what a registered object needs; nothing is changed yet. Raises MissingStateError or UnsupportedStateError."""
    import torch

    tree = targets.tree(name, scope)
    label = name + scope.label
    if isinstance(thing, torch.nn.Module):
        _target_module(targets, label, unwrap(thing), tree, partly=bool(scope.piece))
    elif isinstance(thing, torch.optim.Optimizer):
        _target_optimizer(targets, label, thing, tree, names.of(name, thing), partly=bool(scope.piece))
    else:
        state = materialise(targets, tree, label)
        targets.finish.append(lambda: thing.load_state_dict(state))


def _target_module(targets: Targets, name: str, module: torch.nn.Module, tree: Any, partly: bool) -> None:
    """``partly``: the module is a piece of what is stored."""
    import torch

    state = module.state_dict()
    names = {plain_name(key): key for key in state}
    surplus = sorted(set(tree) - set(names))
    if surplus and not partly:
        raise MissingStateError(f"the checkpoint has entries for which part {name!r} has no place: {', '.join(surplus[:5])}")
    own = {at for held in (*module.parameters(), *module.buffers()) for at in _storages(held)}
    load: dict[str, Any] = {}
    for plain, key in names.items():
        path = join(name, plain)
        if plain not in tree:
            raise MissingStateError(f"the checkpoint has no entry {path!r} step={targets.info.step}")
        value, node = state[key], tree[plain]
        if isinstance(value, torch.Tensor) != isinstance(node, (TensorRef, Compound)):
            raise MissingStateError(f"entry {path!r} is a tensor on one side only: in the checkpoint, or in the module")
        if not isinstance(value, torch.Tensor):
            load[key] = materialise(targets, node, path)
            continue
        targets.fill(node, value, path)
        if not _storages(value) <= own:
            load[key] = value  # a state_dict hook made a copy; filling it would change nothing
    if load:
        targets.finish.append(lambda: (module.load_state_dict(load, strict=False), None)[1])


def _storages(tensor: torch.Tensor) -> set[int]:
    return {block.untyped_storage().data_ptr() for one in compound.innermost(tensor) for block in blocks_of(one)}


def _target_optimizer(
    targets: Targets, name: str, optimizer: torch.optim.Optimizer, tree: Any, names: list[str] | None, partly: bool
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved = tree.get("param_groups") if isinstance(tree, dict) else None
    if saved is None:
        raise MissingStateError(f"part {name!r} was saved from something that is no optimizer")
    groups, places = by_number(name, saved, sizes, names, partly)
    state: dict[int, dict[str, Any]] = {}
    for key, entries in tree["state"].items():
        index = places.get(key, -1)
        if index >= 0:
            state[index] = {
                entry: _for_parameter(targets, node, parameters[index])
                if isinstance(node, TensorRef)
                else materialise(targets, node, f"{name}.state.{key}.{entry}")
                for entry, node in entries.items()
            }
        elif not partly:
            raise MissingStateError(
                f"the checkpoint has state for parameter {key!r} of optimizer {name!r}, which has no such one"
            )
    rest = {key: materialise(targets, node) for key, node in tree.items() if key not in ("state", "param_groups")}
    rest["param_groups"] = [materialise(targets, group) for group in groups]
    targets.finish.append(lambda: _load_optimizer(optimizer, parameters, {**rest, "state": state}))


def by_number(
    name: str, saved: list[dict[str, Any]], sizes: list[int], names: list[str] | None, partly: bool
) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    """Stored groups as those of an optimizer with groups of ``sizes`` parameters of these names, and each stored key's number.

    Raises MissingStateError when parameters are missing or too many, or are grouped otherwise.
    """
    by_name = [isinstance(group["params"], str) for group in saved]
    if not any(by_name):
        stored = [len(group["params"]) for group in saved]
        if sizes != stored:
            raise MissingStateError(
                f"optimizer {name!r} has parameter groups of {sizes} parameters, the checkpoint has {stored}"
            )
        return saved, {number: number for number in range(sum(sizes))}
    if names is None:
        raise MissingStateError(
            f"optimizer {name!r} was saved by the names of its parameters; register the modules that they belong to"
        )
    home = {one: at for at, group in enumerate(saved) for one in group["params"].split("\n") if one}
    absent = [one for one in names if one not in home]
    surplus = sorted(set(home) - set(names))
    if absent or (surplus and not partly):
        what, which = ("no state", absent) if absent else ("state", surplus)
        raise MissingStateError(f"the checkpoint has {what} for parameters of optimizer {name!r}: {', '.join(which[:5])}")
    groups, start = [], 0
    for number, size in enumerate(sizes):
        mine = range(start, start + size)
        homes = {home[names[at]] for at in mine} or {min(number, len(saved) - 1)}
        if len(homes) > 1:
            raise MissingStateError(f"optimizer {name!r} has in its group {number} what is in several groups of the checkpoint")
        groups.append({**saved[homes.pop()], "params": list(mine)})
        start += size
    return groups, {one: at for at, one in enumerate(names)}


def _for_parameter(targets: Targets, ref: TensorRef, parameter: torch.Tensor) -> torch.Tensor:
    """A new tensor for one entry of a parameter's state: placed as the parameter is, if it has its shape, else replicated."""
    import torch

    dtype, shape = targets.stored(ref.fqn)
    if shape == tuple(parameter.shape) and shape:
        made = like_placed(parameter, torch.empty_like(local_of(parameter), dtype=dtype))
        targets.into(ref.fqn, made, ref.fqn)
        return made
    made = targets.fresh(ref.fqn)
    return like_replicated(parameter, made.to(local_of(parameter).device)) if shape else made


def _load_optimizer(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], state: dict[str, Any]) -> None:
    optimizer.load_state_dict(state)
    for index, entries in state["state"].items():
        for key, value in entries.items():
            loaded = optimizer.state[parameters[index]].get(key)
            # load_state_dict casts to the parameter's dtype, which would lose bits of fp32 state of bf16 parameters
            if hasattr(value, "dtype") and hasattr(loaded, "dtype") and loaded.dtype != value.dtype:
                optimizer.state[parameters[index]][key] = value.to(loaded.device)
