"""Tensors that are made of others: what quantisation libraries call a tensor subclass (an 8-bit optimizer's moments).

torch's own protocol takes them apart and puts them together: `__tensor_flatten__` names the inner tensors and gives a context,
`__tensor_unflatten__` is its inverse. The inner tensors are stored as they are, so that nothing is quantised anew; the context
has to be plain data. Nothing is imported because a checkpoint says so: the class must be a loaded tensor class.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ckptd_client.errors import MissingStateError, UnsupportedStateError
from ckptd_client.regions import is_plain
from ckptd_client.typed import Compound

if TYPE_CHECKING:
    import torch


def is_compound(tensor: Any) -> bool:
    """Whether it is to be taken apart. torch's own subclasses aren't state: results on their way, ragged batches, fakes."""
    kind = type(tensor)
    return (
        hasattr(kind, "__tensor_flatten__")
        and hasattr(kind, "__tensor_unflatten__")
        and kind.__module__.partition(".")[0] != "torch"
        and is_plain(tensor)
    )


def kind_of(tensor: Any) -> str:
    """The name under which its class is found again."""
    return f"{type(tensor).__module__}:{type(tensor).__qualname__}"


def take_apart(tensor: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """(its tensors by name, [shape, strides, the class's context])."""
    names, context = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}, [list(tensor.shape), list(tensor.stride()), context]


def check(tensor: Any, path: str) -> None:
    """Raise UnsupportedStateError for one that could not be put together again."""
    kind = kind_of(tensor)
    if _class_of(kind) is not type(tensor) or not take_apart(tensor)[0]:
        raise UnsupportedStateError(path, kind, "its class must be found by its name in its module, and be made of tensors")


def _class_of(kind: str) -> Any:
    import torch

    module, _, name = kind.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    good = isinstance(found, type) and issubclass(found, torch.Tensor) and hasattr(found, "__tensor_unflatten__")
    return found if good else None


def put_together(node: Compound, tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """The tensor that ``node`` stands for, over ``tensors``. Raises MissingStateError."""
    import torch

    kind = _class_of(node.kind)
    if kind is None:
        raise MissingStateError(f"{path!r} is a {node.kind} in the checkpoint; import the library that has it before restore()")
    try:
        shape, strides, context = node.context
        made: torch.Tensor = kind.__tensor_unflatten__(tensors, context, torch.Size(shape), tuple(strides))
    except Exception as error:  # whatever a class of somebody else may raise
        raise MissingStateError(
            f"{path!r} can't be put together by this version of {node.kind}: {type(error).__name__}: {error}"
        ) from error
    return made


def inner_of(node: Compound, tensor: torch.Tensor, path: str) -> dict[str, torch.Tensor]:
    """The tensors of a living one that is to be filled from ``node``. Raises MissingStateError when it is of another kind."""
    tensors, context = take_apart(tensor) if is_compound(tensor) else ({}, None)
    if kind_of(tensor) != node.kind or context != node.context or tensors.keys() != node.tensors.keys():
        raise MissingStateError(
            f"{path!r} is stored as a {node.kind} {node.context}, but is a {kind_of(tensor)} {context}: nothing is converted"
        )
    return tensors


def innermost(tensor: Any) -> list[Any]:
    """The tensors that have memory: it itself, or all that it is made of."""
    if not is_compound(tensor):
        return [tensor]
    return [one for inner in take_apart(tensor)[0].values() for one in innermost(inner)]
