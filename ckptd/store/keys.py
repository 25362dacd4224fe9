"""What a key may look like: one rule for every store, strict enough to be safe in a path, a URL and a pattern."""

from __future__ import annotations

import re

# No part may begin with a dot: that rules out '.', '..' and the directory store's temporary names at once.
_PART = r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,199}"
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_PREFIX = re.compile(rf"({_PART}/)*({_PART})?")

# S3 and GCS allow 1024 bytes; the rest is left for the root prefix that the user chose.
MAX_KEY_BYTES = 800


def check_key(key: str) -> str:
    """Return ``key``, or raise ValueError: keys are computed by us, so a bad one is a bug and never a store's fault."""
    if not is_key(key):
        raise ValueError(f"not a valid object key: {key[:120]!r}")
    return key


def is_key(text: str) -> bool:
    """Could it be an object's key? A listing may show what others have put there."""
    return len(text) <= MAX_KEY_BYTES and _KEY.fullmatch(text) is not None


def check_file(name: str) -> str:
    """Return ``name`` if it is a relative file name that doesn't lead out of its directory, else raise ValueError.

    For reading what others have written under names of their own.
    """
    parts = name.split("/")
    if not name.isprintable() or len(name.encode()) > MAX_KEY_BYTES or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a file's name within its directory: {name[:120]!r}")
    return name


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if some key could begin with it ('' matches every key), else raise ValueError."""
    if len(prefix) > MAX_KEY_BYTES or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not a valid key prefix: {prefix[:120]!r}")
    return prefix


def check_directory(prefix: str) -> str:
    """Return ``prefix`` if it is '' or a key's beginning that ends in '/', else raise ValueError."""
    if prefix and not prefix.endswith("/"):
        raise ValueError(f"not a key prefix that ends in '/': {prefix[:120]!r}")
    return check_prefix(prefix)


def check_range(start: int, end: int | None) -> None:
    """Raise ValueError unless 0 <= start <= end."""
    if start < 0 or (end is not None and end < start):
        raise ValueError(f"not a byte range: start={start} end={end}")


def check_create_body(size_bytes: int) -> None:
    """Refuse the empty body: file systems are known that drop the condition of an empty create, which would overwrite."""
    if size_bytes == 0:
        raise ValueError("create() needs at least one byte: an empty conditional write is not conditional everywhere")
