"""What DCP wants to know of a checkpoint beyond its tensors, as a typed object in it; and what differs from rank to rank.

`META` (global): {"version", "bytes": {fqn: length}, "planner": the planner's data}. A bytes item lies as a uint8 tensor of at
least its length under its FQN: torch.save's bytes, never looked into. `OWN` (per rank): {fqn: [dtype, shape, bytes] or bytes}
of the items that this rank had under a name which DCP stores from another rank.

Where every rank has metadata of its own (`apart`), `META` says so and `RANK_META` (per rank) is as `META` else, with "parts":
{fqn: [shape, [offsets]]} of the tensors of which this rank has shards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ckptd_client.errors import RestoreError
from ckptd_client.typed import decode, encode

META: Final = "ckptd.dcp"
OWN: Final = "ckptd.dcp.own"
RANK_META: Final = "ckptd.dcp.rank"
_VERSION: Final = 1
OWN_ITEM_BYTES: Final = 64 << 10
"""Bigger items under one name on several ranks count as replicas, as DCP has it: parameters under DDP."""
OWN_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Meta:
    """``lengths`` of the bytes items by FQN; ``planner`` is the planner's data; ``parts``: (shape, offsets of the shards)."""

    lengths: dict[str, int]
    planner: Any
    parts: dict[str, tuple[list[int], list[list[int]]]] = field(default_factory=dict)
    apart: bool = False

    def encode(self) -> bytes:
        """Raises UnsupportedStateError when the planner's data are not plain."""
        said: dict[str, Any] = {"version": _VERSION, "bytes": self.lengths, "planner": self.planner}
        if self.parts:
            said["parts"] = {fqn: list(part) for fqn, part in self.parts.items()}
        if self.apart:
            said["apart"] = True
        return encode(said, META)


def read_meta(body: bytes | None) -> Meta:
    """What `Meta.encode` wrote; of a checkpoint that DCP did not make, there is none. Raises RestoreError, ProtocolError."""
    if body is None:
        return Meta({}, {})
    found = decode(body)
    if type(found) is not dict or found.get("version") != _VERSION:
        version = found.get("version") if type(found) is dict else None
        raise RestoreError(f"this checkpoint's DCP metadata need another version of ckptd-client version={version}")
    lengths = found.get("bytes")
    if type(lengths) is not dict or any(type(k) is not str or type(n) is not int or n < 0 for k, n in lengths.items()):
        raise RestoreError("this checkpoint's DCP metadata are malformed")
    return Meta(lengths, found.get("planner"), _parts(found.get("parts", {})), found.get("apart") is True)


def _parts(found: Any) -> dict[str, tuple[list[int], list[list[int]]]]:
    parts: dict[str, tuple[list[int], list[list[int]]]] = {}
    for fqn, part in found.items() if type(found) is dict else [("", None)]:
        if type(fqn) is not str or type(part) is not list or len(part) != 2 or type(part[1]) is not list:
            raise RestoreError("this checkpoint's DCP metadata are malformed")
        if not all(type(row) is list and all(type(n) is int and n >= 0 for n in row) for row in (part[0], *part[1])):
            raise RestoreError("this checkpoint's DCP metadata are malformed")
        parts[fqn] = part[0], part[1]
    return parts


def read_own(body: bytes | None) -> dict[str, Any]:
    """A rank's own items. Raises RestoreError, ProtocolError."""
    found = decode(body) if body is not None else {}
    if type(found) is not dict:
        raise RestoreError("a rank's own items in this checkpoint are malformed")
    return found
