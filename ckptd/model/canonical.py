"""Canonical JSON, and the values that stand in it: whole numbers, hashes, ids.

Keys sorted, no spaces, ASCII, and only text, whole numbers, lists, dicts and null: what is equal has equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

from ckptd.errors import CorruptError, NewerFormatError
from ckptd.model.ids import Attempt, Snapshot

FORMAT_VERSION: Final = 1
MAX_NUMBER: Final = 10**15 - 1  # exact in every JSON reader (below 2**53)
_HASH = re.compile(r"[0-9a-f]{64}")
_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))


def canonical(value: object) -> bytes:
    """Canonical JSON of text, whole numbers, lists, dicts and None."""
    return _encoder.encode(value).encode("ascii")


def digest(data: bytes) -> str:
    """Name of an object by its content: blake2b-256, hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def is_hash(value: object) -> bool:
    """Is it the text form of a blake2b-256 digest?"""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def is_number(value: object) -> bool:
    """Is it a whole number from 0 to MAX_NUMBER? (A bool isn't.)"""
    return type(value) is int and 0 <= value <= MAX_NUMBER


def parse_canonical(data: bytes, limit_bytes: int, names: str) -> dict[str, object]:
    """Parse canonical JSON of one dict with exactly these keys and our format version, values unchecked.

    Raises CorruptError, or NewerFormatError.
    """
    if len(data) > limit_bytes:
        raise CorruptError(f"more than {limit_bytes} bytes")
    try:
        value = json.loads(data.decode("ascii"))
        same = canonical(value) == data
    except (ValueError, RecursionError):
        raise CorruptError("not ASCII JSON") from None
    if not same:
        raise CorruptError("JSON not in canonical form")
    version = value.get("v") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:  # before its fields, which may be others
        raise NewerFormatError(
            f"it was written by a newer ckptd: format {version}; this ckptd reads up to {FORMAT_VERSION}: upgrade it"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise CorruptError(f"format version {version!r:.40}; this ckptd reads {FORMAT_VERSION}")
    return exact_fields(value, names)


def exact_fields(value: object, names: str) -> dict[str, object]:
    """``value`` if it is a dict with exactly these (space-separated) keys, else CorruptError."""
    if not isinstance(value, dict) or value.keys() != set(names.split()):
        raise CorruptError(f"expected the fields {names!r}")
    return value


def read_attempt(value: object) -> Attempt:
    """An attempt from its text form. Raises CorruptError."""
    if not isinstance(value, str):
        raise CorruptError("an attempt id is text")
    return Attempt.parse(value)


def read_snapshot(value: object) -> Snapshot:
    """A snapshot from its text form. Raises CorruptError."""
    if not isinstance(value, str):
        raise CorruptError("a snapshot is text")
    return Snapshot.parse(value)
