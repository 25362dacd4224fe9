"""Saves with use_collectives=False: no rank hears of another's plan, so each keeps what it has for itself.

A tensor of such a rank is stored whole in its scope. A shard is stored as a tensor of its own, under a name that is none of
DCP's, and the rank's `Meta` says of which bigger one it is a part.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import ReadItem

from ckptd_client.dcp.meta import Meta
from ckptd_client.errors import ConfigError, MissingStateError, RestoreError
from ckptd_client.messages.restoring import Stored, Want
from ckptd_client.regions import is_dtensor, is_sharded_tensor, local_of


def world_of(rank: int) -> int:
    """How many ranks save when rank ``rank`` does. Raises ConfigError for a process group: of its size a writer isn't told."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    if rank != dist.get_rank():
        raise ConfigError(
            "with use_collectives=False all ranks of the default process group save, or a process without one;"
            f" leave process_group and no_dist out rank={rank} of_the_default_group={dist.get_rank()}"
        )
    return dist.get_world_size()


def token_of(step: int | None) -> str:
    """What names a save's world on all its ranks, made of what they know without a word. Raises ConfigError without a step."""
    if step is None:
        raise ConfigError("with use_collectives=False the ranks can't agree on a step: give CkptdWriter one")
    facts = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    return hashlib.sha256(json.dumps([step, *facts]).encode()).hexdigest()[:16]


def part_name(fqn: str, offsets: Iterable[int]) -> str:
    """Under which name a shard that begins at ``offsets`` is stored."""
    return f"ckptd.part.{fqn}@{','.join(map(str, offsets))}"


def tensors_of(own: Mapping[str, Stored], meta: Meta) -> dict[str, Stored]:
    """What a rank has by DCP's names, shards as regions of what they are parts of. Raises RestoreError."""
    found = {fqn: stored for fqn, stored in own.items() if not fqn.startswith("ckptd.")}
    for fqn, (shape, places) in meta.parts.items():
        shards = [own.get(part_name(fqn, offsets)) for offsets in places]
        regions, dtypes = [], set()
        for offsets, shard in zip(places, shards, strict=True):
            if shard is None or not len(shape) == len(offsets) == len(shard.shape):
                raise RestoreError(
                    f"this checkpoint's DCP metadata name a shard that isn't there fqn={fqn!r} offsets={offsets}"
                )
            regions.append((tuple(offsets), shard.shape))
            dtypes.add((shard.dtype, shard.rank))
        if len(dtypes) != 1:
            raise RestoreError(f"the shards of one tensor are of several types fqn={fqn!r} types={sorted(dtypes)}")
        ((dtype, rank),) = dtypes
        found[fqn] = Stored(fqn, rank, dtype, tuple(shape), regions)
    return found


def want_of(stored: Stored, parts: Mapping[str, Any], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Want:
    """What to ask for to get this region. Raises MissingStateError when no shard of this rank has it."""
    if stored.fqn not in parts:
        return Want(stored.fqn, stored.rank, stored.dtype, stored.shape, offsets, sizes)
    for begin, shape in stored.regions:
        inside = tuple(offset - first for offset, first in zip(offsets, begin, strict=True))
        if all(at >= 0 and at + n <= have for at, n, have in zip(inside, sizes, shape, strict=True)):
            return Want(part_name(stored.fqn, begin), stored.rank, stored.dtype, shape, inside, sizes)
    raise _elsewhere(stored)


def check_covered(
    state: Mapping[str, Any], tensors: Mapping[str, Stored], items: Iterable[ReadItem], but: Container[str]
) -> None:
    """DCP reads what a rank's metadata have of a tensor, and leaves the rest as it was. Raises MissingStateError for a rest,
    except of the names in ``but``.
    """
    planned: Counter[str] = Counter()
    for item in items:
        planned[item.dest_index.fqn] += math.prod(item.lengths)
    for fqn, value in state.items():
        if fqn in tensors and fqn not in but and planned[fqn] != _elements(value, planned[fqn]):
            raise _elsewhere(tensors[fqn])


def _elements(value: Any, otherwise: int) -> int:
    if is_sharded_tensor(value):
        return sum(shard.tensor.numel() for shard in value.local_shards())
    if is_dtensor(value):
        return local_of(value).numel() if value.device_mesh.get_coordinate() is not None else 0
    return value.numel() if isinstance(value, torch.Tensor) else otherwise


def _elsewhere(stored: Stored) -> MissingStateError:
    return MissingStateError(
        "a checkpoint saved with use_collectives=False gives each rank what it had itself, and this one had another part of a"
        f" tensor; load it into the layout it was saved from fqn={stored.fqn!r} rank={stored.rank} has={stored.regions[:4]}"
    )
