"""The LEADER hint: where the coordinator in office listens (PROTOCOLS 4.4). Never trusted for anything but a place to ask.

Canonical JSON, one small object, put again and again by whoever is in office; ``counter`` changes each
time, so that a watcher sees that its writer lives without comparing clocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.canonical import FORMAT_VERSION, MAX_NUMBER, canonical, parse_canonical
from ckptd.model.keys import leader_key
from ckptd.model.records import clean_reason
from ckptd.store.base import Store, get_small

MAX_HINT_BYTES: Final = 8192  # 500 characters of ``over``, escaped, and the rest
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class LeaderHint:
    """``address`` is host:port; ``counter`` counts the writes of one reign; ``over``: why the job is done, "" before."""

    address: str
    epoch: int
    counter: int
    over: str = ""


def encode_hint(hint: LeaderHint) -> bytes:
    """Its bytes."""
    fields = {"address": hint.address, "counter": hint.counter, "epoch": hint.epoch, "over": hint.over}
    return canonical({**fields, "v": FORMAT_VERSION})


def decode_hint(data: bytes) -> LeaderHint:
    """Read what ``encode_hint`` wrote. Raises CorruptError."""
    fields = parse_canonical(data, MAX_HINT_BYTES, "address counter epoch over v")
    address, epoch, counter, over = fields["address"], fields["epoch"], fields["counter"], fields["over"]
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address) or not isinstance(over, str):
        raise CorruptError("the leader hint holds no address")
    if not (type(epoch) is int and type(counter) is int and 0 <= epoch <= MAX_NUMBER and 0 <= counter <= MAX_NUMBER):
        raise CorruptError("the leader hint holds no numbers")
    return LeaderHint(address, epoch, counter, over)


async def read_hint(store: Store, job: str) -> LeaderHint | None:
    """The hint as it stands; None when there is none, or none that can be read (it is only a hint). Raises store errors."""
    try:
        return decode_hint(await get_small(store, leader_key(job), MAX_HINT_BYTES))
    except (NotFoundError, CorruptError):
        return None


async def write_hint(store: Store, job: str, hint: LeaderHint) -> None:
    """Put the hint; its ``over`` is cut to what fits. Raises store errors."""
    await store.put(leader_key(job), encode_hint(replace(hint, over=clean_reason(hint.over) if hint.over else "")))
