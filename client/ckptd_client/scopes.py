"""Whose a registered part is: the world's (the default), a rank's own, one place's of a mesh dimension, or some ranks' piece.

ckpt.register(model=model)                              # every rank has the same tree; DTensors say who holds what
ckpt.register(sampler=per_rank(sampler))                # each rank's own; loads into as many ranks only
ckpt.register(loader=per_index(loader, mesh, "dp"))     # one for each index of "dp", alike on all ranks with that index
ckpt.register(model=over(stage, mesh["dp", "tp"]))      # a piece of the model, held by these ranks alike: a pipeline's stage
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ckptd_client.errors import ConfigError, MissingStateError
from ckptd_client.messages.restoring import RestoreInfo
from ckptd_client.placement import Holders, Mesh
from ckptd_client.regions import mesh_of


@dataclass(frozen=True, slots=True)
class Scoped:
    """A part and whose it is, to be given to `Checkpointer.register`."""

    thing: Any
    kind: str  # "rank", "index" or "over"
    holders: Holders | None = None
    dim: int = -1


def per_rank(thing: Any) -> Scoped:
    """``thing`` is another one on each rank. It comes back only in a world of as many ranks."""
    return Scoped(thing, "rank")


def per_index(thing: Any, mesh: Any, dim: str) -> Scoped:
    """``thing`` is another one for each index along dimension ``dim`` of a DeviceMesh, the same on all ranks with that index.

    It comes back only where the dimension has as many places. ``mesh`` is the whole one: which ranks share an index is read off
    its other dimensions. Raises ConfigError.
    """
    found, names = mesh_of(mesh), getattr(mesh, "mesh_dim_names", None) or ()
    if found is None or dim not in names:
        raise ConfigError(f"per_index() needs a DeviceMesh with a dimension of this name dim={dim!r} has={list(names)}")
    return Scoped(thing, "index", _holders(found.ranks, found), names.index(dim))


def over(thing: Any, ranks: Any) -> Scoped:
    """``thing`` is held alike by ``ranks``: a DeviceMesh, a process group, or their numbers. Other ranks hold other pieces.

    All pieces together are the part, under disjoint names, and a load into any other layout finds each. Tensors on a mesh
    that is a slice of this one are replicated over the rest of it. Raises ConfigError.
    """
    mesh = mesh_of(ranks)
    distributed = sys.modules.get("torch.distributed")
    if mesh is None and distributed is not None and isinstance(ranks, distributed.ProcessGroup):
        ranks = distributed.get_process_group_ranks(ranks)
    if mesh is None and not isinstance(ranks, Iterable):
        raise ConfigError(f"over() needs a DeviceMesh, a process group or ranks type={type(ranks).__name__}")
    return Scoped(thing, "over", _holders(mesh.ranks if mesh is not None else tuple(map(int, ranks)), mesh))


def _holders(ranks: tuple[int, ...], mesh: Mesh | None) -> Holders:
    if not ranks or len(set(ranks)) < len(ranks):
        raise ConfigError(f"a part needs holders, each once ranks={list(ranks)}")
    return Holders(tuple(sorted(ranks)), mesh)


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a part is stored. ``label`` follows its name in its tensors' and object's; ``piece`` in its object's alone."""

    kind: str  # "global", "rank" or "index"
    holders: Holders
    label: str = ""
    piece: str = ""
    count: int = 0

    @property
    def stored(self) -> str:
        """As items have it."""
        return "rank" if self.kind == "rank" else "global"


def world(world_size: int) -> Scope:
    """That of a part of which nothing was said."""
    return Scope("global", Holders(tuple(range(world_size))))


def scope_of(name: str, given: Any, rank: int, world_size: int) -> tuple[Any, Scope]:
    """(the part, whose it is) of what was registered. Raises ConfigError when this rank has no part in it."""
    if not isinstance(given, Scoped):
        return given, world(world_size)
    if given.kind == "rank":
        return given.thing, Scope("rank", Holders((rank,)))
    assert given.holders is not None
    ranks, mesh = given.holders.ranks, given.holders.mesh
    if rank not in ranks or ranks[-1] >= world_size:
        raise ConfigError(f"rank {rank} of {world_size} registers a part of other ranks part={name} ranks={list(ranks)[:20]}")
    if given.kind == "over":
        piece = f"[{ranks[0]}]" if len(ranks) < world_size else ""
        return given.thing, Scope("global", given.holders, piece=piece)
    assert mesh is not None
    if len(ranks) < world_size:
        raise ConfigError(f"per_index() needs a mesh of the whole world part={name} ranks={list(ranks)[:20]}")
    coordinate = mesh.coordinate(rank)
    assert coordinate is not None
    same = mesh.like(coordinate, [dim for dim in range(len(mesh.shape)) if dim != given.dim])
    count = mesh.shape[given.dim]
    return given.thing, Scope("index", Holders(tuple(sorted(same))), label=f"[{coordinate[given.dim]} of {count}]", count=count)


_SAID: Final = {"global": "of the whole world", "rank": "of each rank", "index": "per index of a mesh dimension"}


def stored_objects(info: RestoreInfo, name: str, scope: Scope, world_size: int) -> list[bytes]:
    """The stored trees of a part: one, or all pieces of it by their lowest rank.

    Raises MissingStateError when there is none, or it is of another scope: whose state would it be?
    """
    pattern = re.compile(re.escape(name) + r"\[(\d+)(?: of (\d+))?\]")
    numbered = [(match, body) for fqn, body in info.objects.items() if (match := pattern.fullmatch(fqn))]
    pieces = sorted((int(match[1]), body) for match, body in numbered if match[2] is None)
    counts = {int(match[2]) for match, _ in numbered if match[2] is not None}
    kinds = {"global": name in info.objects or bool(pieces), "index": bool(counts), "rank": name in info.rank_objects}
    found = [kind for kind, there in kinds.items() if there]
    if scope.kind == "rank" and not found and info.world_size != world_size:
        found = ["rank"]  # this rank was in no world of that size
    if not found:
        has = sorted({re.sub(r"\[\d+( of \d+)?\]$", "", fqn) for fqn in (*info.objects, *info.rank_objects)})
        raise MissingStateError(
            f"the checkpoint has no part {name!r}; register the parts that were saved step={info.step} has={has}"
        )
    if scope.kind not in found:
        raise MissingStateError(
            f"part {name!r} was saved as one {_SAID[found[0]]}, and is registered as one {_SAID[scope.kind]}:"
            " register it as it was saved"
        )
    if scope.kind == "rank":
        if info.world_size != world_size:
            raise MissingStateError(_another_number(name, "each rank", info.world_size, "ranks", world_size))
        return [info.rank_objects[name]]
    if scope.kind == "index":
        if counts != {scope.count}:
            raise MissingStateError(_another_number(name, "each index", min(counts), "indices", scope.count))
        return [info.objects[name + scope.label]]
    return [info.objects[name]] if name in info.objects else [body for _, body in pieces]


def _another_number(name: str, whose: str, saved: int, what: str, here: int) -> str:
    return (
        f"part {name!r} is one of {whose}, saved for {saved} {what}, and there are {here}: nobody can say whose state is whose;"
        " leave it out, or restore with as many"
    )
