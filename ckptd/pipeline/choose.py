"""Does encoding pay? From what was measured, and without a look at any clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_WORTH: Final = 0.03
"""What encoding must gain: less isn't worth the trainer's CPU, now and at every restore."""
_TAKEN: Final = 1.5
"""Core-seconds of a busy machine that one of encoding costs: caches and the threads of one core are shared. With the store on
the same two cores planes took 1.16 times as long as raw, measured; counted once it would have been 0.98."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine and its way to the store can do.

    link_bytes_per_second: of all PUTs in flight together. idle_cores: how many of the machine's cores encoding may take
    meanwhile without taking them from anybody. encode_seconds_per_byte: core-seconds per raw byte. stored_per_raw: of bytes.
    threads: most cores that may encode at once.
    """

    link_bytes_per_second: float
    idle_cores: float
    encode_seconds_per_byte: float
    stored_per_raw: float
    threads: int


def raw_seconds(rates: Rates) -> float:
    """To store a byte as it is."""
    return 1 / rates.link_bytes_per_second


def encoded_seconds(rates: Rates) -> float:
    """To store a raw byte encoded: fewer bytes are sent, and idle cores encode beside the sending.

    What they can't do takes cores away from those who send (and from a store on the same machine), for as long as it lasts.
    """
    sending = rates.stored_per_raw / rates.link_bytes_per_second
    beside = min(rates.idle_cores, rates.threads) * sending
    taken = max(0.0, _TAKEN * rates.encode_seconds_per_byte - beside) / rates.threads
    return max(sending + taken, rates.encode_seconds_per_byte / rates.threads)


def encoding_pays(rates: Rates) -> bool:
    """Is a byte in the store sooner when it is encoded?"""
    return encoded_seconds(rates) < raw_seconds(rates) * (1 - _WORTH)
