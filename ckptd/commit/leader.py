"""The LEADER hint: where the coordinator in office listens (PROTOCOLS 4.4). Never trusted for anything but a place to ask.

Canonical JSON, one small object, put again and again by whoever is in office; ``counter`` changes each
time, so that a watcher sees that its writer lives without comparing clocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.keys import leader_key
from ckptd.model.records import FORMAT_VERSION, MAX_NUMBER, canonical, parse_canonical
from ckptd.store.base import Store

MAX_HINT_BYTES: Final = 1024
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class LeaderHint:
    """``address`` is host:port; ``counter`` counts the writes of one reign."""

    address: str
    epoch: int
    counter: int


def encode_hint(hint: LeaderHint) -> bytes:
    """Its bytes."""
    return canonical({"address": hint.address, "counter": hint.counter, "epoch": hint.epoch, "v": FORMAT_VERSION})


def decode_hint(data: bytes) -> LeaderHint:
    """Read what ``encode_hint`` wrote. Raises CorruptError."""
    fields = parse_canonical(data, MAX_HINT_BYTES, "address counter epoch v")
    address, epoch, counter = fields["address"], fields["epoch"], fields["counter"]
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise CorruptError("the leader hint holds no address")
    if not (type(epoch) is int and type(counter) is int and 0 <= epoch <= MAX_NUMBER and 0 <= counter <= MAX_NUMBER):
        raise CorruptError("the leader hint holds no numbers")
    return LeaderHint(address, epoch, counter)


async def read_hint(store: Store, job: str) -> LeaderHint | None:
    """The hint as it stands; None when there is none, or none that can be read (it is only a hint). Raises store errors."""
    try:
        return decode_hint(await store.get(leader_key(job), 0, MAX_HINT_BYTES + 1))
    except (NotFoundError, CorruptError):
        return None


async def write_hint(store: Store, job: str, hint: LeaderHint) -> None:
    """Put the hint. Raises store errors."""
    await store.put(leader_key(job), encode_hint(hint))


async def find_leader(store: Store, job: str) -> str | None:
    """host:port of whoever was last in office, if anybody was. Raises store errors."""
    hint = await read_hint(store, job)
    return None if hint is None else hint.address
