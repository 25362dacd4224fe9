"""Where a DTensor's local part really lies. torch's own arithmetic, which DCP's planners use, is wrong for FSDP2 over TP when
the dimension does not divide; a plan with such a mistake may pass DCP's validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ckptd_client.placement import Holders
from ckptd_client.regions import is_dtensor, is_plain, local_of, mesh_of, regions_of


@dataclass(frozen=True, slots=True)
class Misplaced:
    """This rank's part of a DTensor that DCP's plan has elsewhere."""

    local: torch.Tensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def state_of(planner: object) -> Mapping[str, Any]:
    """The flat state dict that DCP's default planners, and those made of them, keep."""
    found = getattr(planner, "state_dict", None)
    return found if isinstance(found, Mapping) else {}


def misplaced(state: Mapping[str, Any]) -> Iterator[tuple[str, Misplaced]]:
    """The DTensors in ``state`` of which torch says something else than is the case. Raises UnsupportedStateError."""
    known: dict[object, tuple[tuple[int, ...], tuple[int, ...]] | None] = {}
    for fqn, value in state.items():
        if not isinstance(fqn, str) or not is_dtensor(value) or not is_plain(local_of(value)):
            continue
        mesh, placements, shape = value.device_mesh, value.placements, tuple(value.shape)
        if mesh.get_coordinate() is None or any(placement.is_partial() for placement in placements):
            continue
        key = (mesh, placements, shape)
        if key not in known:
            known[key] = _correction(value, fqn)
        correction = known[key]
        if correction is not None:
            yield fqn, Misplaced(local_of(value), *correction)


def _correction(value: Any, fqn: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(offsets, sizes), if torch says others."""
    mesh = mesh_of(value.device_mesh)
    assert mesh is not None
    (region,) = regions_of(value, Holders(tuple(sorted(mesh.ranks))), torch.distributed.get_rank(), fqn)
    (chunk,) = value.__create_chunk_list__()
    same = tuple(chunk.sizes) == region.sizes and (tuple(chunk.offsets) == region.offsets or 0 in region.sizes)
    return None if same else (region.offsets, region.sizes)
