"""Registered parts as their trainer knows them: pieces united, optimizers as torch has them. Pure.

A part that is held in pieces (a pipeline's stages) is stored as an object for each, `part[R]` with its lowest rank R, and its
pieces are united here as a load unites them. One per index is `part[I of N]`, and stays an entry of that name. An optimizer
of registered modules is stored by the names of its parameters, with the module's part in front: `state` maps names, and a
group's `params` are names, one a line.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.tree import join

_PIECE: Final = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)
_INDEX: Final = re.compile(r"(.*)\[\d+ of \d+\]", re.DOTALL)


def pieces_by_part(objects: Mapping[str, bytes]) -> dict[str, list[bytes]]:
    """The bodies of each part's pieces, lowest rank first; of a part that isn't in pieces its one body.

    Names of registered parts have no bracket of their own. What ranks have registered as whole and in pieces loads as the whole
    one, and the pieces are entries of their own here.
    """
    numbered: dict[str, list[tuple[int, bytes]]] = {}
    for fqn, body in objects.items():
        if (match := _PIECE.fullmatch(fqn)) and match[1] not in objects:
            numbered.setdefault(match[1], []).append((int(match[2]), body))
        else:
            numbered[fqn] = [(-1, body)]
    return {name: [body for _, body in sorted(pieces)] for name, pieces in numbered.items()}


def united(name: str, trees: Sequence[Any]) -> Any:
    """The tree of part ``name``, whose pieces are ``trees``.

    Maps are united, lists of equal lengths entry by entry, and other values must be equal; an optimizer's ``params`` are put
    together. Raises InterchangeError naming the entry on which pieces disagree.
    """
    whole = trees[0]
    for tree in trees[1:]:
        whole = _both(name, whole, tree)
    return whole


def _both(path: str, one: Any, other: Any) -> Any:
    if type(one) is type(other):
        if type(one) in (dict, OrderedDict):
            return _maps(path, one, other)
        if type(one) in (list, tuple) and len(one) == len(other):
            return type(one)(_both(join(path, at), *pair) for at, pair in enumerate(zip(one, other, strict=True)))
        if repr(one) == repr(other):  # NaN is the same as NaN here, and 0.0 another than -0.0
            return one
    raise InterchangeError(
        f"the pieces of a part disagree, so they are no one state; export other parts (--part) entry={path!r:.200}"
        f" values={one!r:.80} and {other!r:.80}"
    )


def _maps(path: str, one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    whole = type(one)(one)
    for key, value in other.items():
        if key not in one:
            whole[key] = value
        elif key == "params" and type(value) is type(one[key]) is str:
            whole[key] = "\n".join(dict.fromkeys((*_lines(one[key]), *_lines(value))))
        else:
            whole[key] = _both(join(path, key), one[key], value)
    return whole


def by_number(tree: Any) -> Any:
    """What `Optimizer.state_dict()` gave, if ``tree`` is an optimizer by names: numbers in the order of the groups' names.

    Anything else is returned as it is. Raises InterchangeError for a parameter that is in two groups.
    """
    return _renamed(tree, lambda names: {name: number for number, name in enumerate(names)})


def by_name(tree: Any, parts: Iterable[str]) -> Any:
    """What torch's `get_state_dict()` gives, if ``tree`` is an optimizer by names: those that its module gives, in lists.

    ``parts`` are the names of all parts. Parameters of several modules keep the part's name in front of theirs. Anything else
    is returned as it is. Raises InterchangeError for a parameter that is in two groups.
    """
    modules = [match[1] if (match := _INDEX.fullmatch(part)) else part for part in parts]

    def without_module(names: Sequence[str]) -> dict[str, str]:
        of_one = (f"{module}." for module in modules if all(name.startswith(f"{module}.") for name in names))
        prefix = next(of_one, "")
        return {name: name.removeprefix(prefix) for name in names}

    return _renamed(tree, without_module)


def _renamed(tree: Any, new_names: Callable[[Sequence[str]], Mapping[str, int | str]]) -> Any:
    groups = tree.get("param_groups") if isinstance(tree, dict) and isinstance(tree.get("state"), dict) else None
    if type(groups) is not list or not all(isinstance(group, dict) and type(group.get("params")) is str for group in groups):
        return tree
    names = [name for group in groups for name in _lines(group["params"])]
    if len({*names}) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise InterchangeError(f"a parameter is in two groups of an optimizer name={twice!r:.200}")
    new = new_names(names)
    return {
        **tree,
        "state": {new.get(key, key): value for key, value in tree["state"].items()},
        "param_groups": [{**group, "params": [new[name] for name in _lines(group["params"])]} for group in groups],
    }


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]
