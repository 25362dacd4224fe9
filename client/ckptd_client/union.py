"""Several pieces of a stored tree made one: what a pipeline's stages have saved, each the tree of its own. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ckptd_client.errors import MissingStateError
from ckptd_client.typed import encode, join


def union(path: str, trees: Sequence[Any]) -> Any:
    """Maps are united, lists of equal lengths entry by entry, and other values must be equal; an optimizer's ``params`` (names,
    one a line) are put together. Raises MissingStateError naming the entry on which pieces disagree.
    """
    whole = trees[0]
    for tree in trees[1:]:
        whole = _both(path, whole, tree)
    return whole


def _both(path: str, one: Any, other: Any) -> Any:
    if type(one) is type(other):
        if type(one) in (dict, OrderedDict):
            return _maps(path, one, other)
        if type(one) in (list, tuple) and len(one) == len(other):
            return type(one)(_both(join(path, at), *pair) for at, pair in enumerate(zip(one, other, strict=True)))
        if encode(one) == encode(other):
            return one
    raise MissingStateError(f"the pieces of the part disagree about {path!r}: {one!r:.80} and {other!r:.80}")


def _maps(path: str, one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    whole = type(one)(one)
    for key, value in other.items():
        if key not in one:
            whole[key] = value
        elif key == "params" and type(value) is type(one[key]) is str:
            whole[key] = "\n".join(dict.fromkeys(f"{one[key]}\n{value}".strip("\n").split("\n")))
        else:
            whole[key] = _both(join(path, key), one[key], value)
    return whole
