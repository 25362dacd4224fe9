"""What of a checkpoint is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptd.errors import ConfigError, CorruptError, InterchangeError
from ckptd.interchange.registered import by_name, by_number, pieces_by_part, united
from ckptd.interchange.saved_dcp import META, read_saved_dcp
from ckptd.interchange.tree import TensorRef, decode_tree, leaves
from ckptd.model.dtypes import OBJECT
from ckptd.model.layout import GLOBAL, Tensor
from ckptd.restore.checkpoint import Checkpoint
from ckptd.store.base import Store

_OWN: Final = "ckptd."
STATE: Final = "ckptd.state"
MODEL: Final = "model"


@dataclass(frozen=True, slots=True)
class State:
    """What of a checkpoint is exported, as its user knows it, and the tensors by the names that stand in it."""

    tree: Any
    tensors: dict[str, Tensor]

    def tensor(self, ref: TensorRef) -> Tensor:
        """Raises CorruptError when the checkpoint lacks what its tree names."""
        if ref.fqn not in self.tensors:
            raise CorruptError(f"the checkpoint's tree names a tensor that isn't there fqn={ref.fqn!r:.200}")
        return self.tensors[ref.fqn]


async def read_state(store: Store, checkpoint: Checkpoint, part: str | None, weights: bool, names: bool) -> State:
    """The state dict that was saved, also by `dcp.save`, or else the registered parts by name. What is a rank's own (its
    generators) isn't in it.

    ``part`` is the one entry that is wanted; None is all of it, or for ``weights`` its "model" if it has one. With ``names``
    registered optimizers go by the names of their parameters, as in torch's `get_state_dict()`, else by number.
    Raises ConfigError when there is no such part, InterchangeError for pieces that are no one state, CorruptError, and what the
    store raises.
    """
    (objects,) = await checkpoint.read_objects(store, [GLOBAL])
    tensors = {t.fqn: t for t in checkpoint.layout.tensors if t.dtype != OBJECT and t.rank == GLOBAL}
    if META in objects:
        tree = _saved(await read_saved_dcp(store, checkpoint, decode_tree(objects[META]), tensors), part, weights)
    elif STATE in objects:
        tree = _saved(decode_tree(objects[STATE]), part, weights)
    else:
        tree = _registered(objects, part, weights, names)
    return State(tree, tensors)


def _saved(tree: Any, part: str | None, weights: bool) -> Any:
    if not isinstance(tree, dict):
        raise CorruptError(f"the checkpoint's state is no dict but a {type(tree).__name__}")
    key = _chosen(tree, part, weights and isinstance(tree.get(MODEL), dict))
    return tree if key is None else tree[key]


def _registered(objects: Mapping[str, bytes], part: str | None, weights: bool, names: bool) -> Any:
    """Only what is exported is united: pieces that are no one state may be all that is wrong with a checkpoint."""
    parts = pieces_by_part({fqn: body for fqn, body in objects.items() if not fqn.startswith(_OWN)})

    def made(name: str) -> Any:
        tree = united(name, [decode_tree(body) for body in parts[name]])
        return by_name(tree, parts) if names else by_number(tree)

    key = _chosen(parts, part, weights)
    return {name: made(name) for name in parts} if key is None else made(key)


def _chosen(entries: Mapping[Any, Any], part: str | None, weights: bool) -> str | None:
    """The name of the one entry to export, None for all."""
    if part is None:
        return MODEL if weights and MODEL in entries else None
    if part not in entries:
        has = ", ".join(str(key) for key in list(entries)[:20])
        raise ConfigError(f"the checkpoint has no part {part!r}; it has: {has}")
    return part


def refs(tree: Any) -> dict[str, TensorRef]:
    """The tensors of a tree by dotted path. Raises InterchangeError where two have one."""
    found: dict[str, TensorRef] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, TensorRef):
            if path in found:
                raise InterchangeError(
                    f"two tensors have one dotted name, so this format can't tell them apart name={path!r:.200}"
                )
            found[path] = leaf
    return found
