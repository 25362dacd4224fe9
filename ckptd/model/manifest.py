"""A manifest: the description of one checkpoint, named by its content (PROTOCOLS 3). Deterministic msgpack.

Equal manifests have equal bytes, and `decode_manifest` accepts exactly what `Manifest.encode` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ckptd.errors import ConfigError, CorruptError
from ckptd.model.canonical import is_hash, is_number
from ckptd.model.columns import FORMAT_VERSION, READER_VERSION, check_versions
from ckptd.model.ids import Attempt, check_job
from ckptd.model.records import MAX_BASES

MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_TAGS: Final = 64
MAX_TAG_CHARACTERS: Final = 1000

_FIELDS: Final = (
    *("version", "reader", "job", "attempt", "world_size", "parent", "bases"),
    *("layout", "index", "raw_bytes", "stored_bytes", "tags"),
)


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An object's hash (blake2b-256, hex) and size in bytes. Its key is computed."""

    hash: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A commit whose frames are referred to: its log number, whose attempt's data they lie in, and their stored bytes."""

    seq: int
    attempt: Attempt
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """``parent`` is the log number of the commit before; ``bases`` are the commits whose frames are referred to.

    ``raw_bytes`` is what the trainers' state has, ``stored_bytes`` what its own segments have.
    """

    job: str
    attempt: Attempt
    world_size: int
    parent: int | None
    layout: ObjectRef
    index: ObjectRef
    raw_bytes: int
    stored_bytes: int
    bases: tuple[BaseRef, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.attempt.snapshot.step

    def encode(self) -> bytes:
        """Its bytes. Raises ValueError for one that `decode_manifest` would refuse."""
        if problem := _problem(self):
            raise ValueError(f"not a manifest: {problem}")
        fields: dict[str, object] = {
            "version": FORMAT_VERSION,
            "reader": READER_VERSION,
            "job": self.job,
            "attempt": str(self.attempt),
            "world_size": self.world_size,
            "parent": self.parent,
            "bases": [[base.seq, str(base.attempt), base.stored_bytes] for base in self.bases],
            "layout": [self.layout.hash, self.layout.size_bytes],
            "index": [self.index.hash, self.index.size_bytes],
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "tags": dict(sorted(self.tags.items())),
        }
        body: bytes = msgpack.packb(fields)
        return body


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises CorruptError for whatever `Manifest.encode` can't have written."""
    fields = _parse(data)
    try:
        manifest = Manifest(
            job=check_job(fields["job"]),
            attempt=Attempt.parse(fields["attempt"]),
            world_size=fields["world_size"],
            parent=fields["parent"],
            bases=tuple(BaseRef(seq, Attempt.parse(attempt), size) for seq, attempt, size in fields["bases"]),
            layout=ObjectRef(*fields["layout"]),
            index=ObjectRef(*fields["index"]),
            raw_bytes=fields["raw_bytes"],
            stored_bytes=fields["stored_bytes"],
            tags=dict(fields["tags"]),
        )
        problem = _problem(manifest) or (None if manifest.encode() == data else "not in canonical form")
    except (TypeError, ValueError, OverflowError, ConfigError) as error:
        raise CorruptError(f"a manifest doesn't parse: {type(error).__name__}") from None
    if problem:
        raise CorruptError(f"a manifest doesn't parse: {problem}")
    return manifest


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptError(f"a manifest doesn't parse: more than {MAX_MANIFEST_BYTES} bytes")
    try:
        value = msgpack.unpackb(data, max_array_len=MAX_BASES, max_map_len=max(MAX_TAGS, len(_FIELDS)))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise CorruptError("a manifest doesn't parse: not msgpack") from None
    if not isinstance(value, dict):
        raise CorruptError("a manifest doesn't parse: no map")
    check_versions("a manifest", value.get("version"), value.get("reader"))
    if tuple(value) != _FIELDS:
        raise CorruptError(f"a manifest doesn't parse: expected the fields {', '.join(_FIELDS)}")
    return value


def _problem(manifest: Manifest) -> str | None:
    """Why it is no well-formed manifest, or None."""
    numbers = (
        manifest.world_size,
        manifest.raw_bytes,
        manifest.stored_bytes,
        manifest.layout.size_bytes,
        manifest.index.size_bytes,
    )
    if not all(map(is_number, numbers)) or not manifest.world_size:
        return "a number is out of bounds"
    if not is_hash(manifest.layout.hash) or not is_hash(manifest.index.hash):
        return "bad hash"
    if not (manifest.parent is None or is_number(manifest.parent)):
        return "bad parent"
    bases = [base.seq for base in manifest.bases]
    sizes = [base.stored_bytes for base in manifest.bases]
    if len(bases) > MAX_BASES or not all(map(is_number, bases + sizes)) or bases != sorted(set(bases)):
        return f"bases are at most {MAX_BASES}, by ascending numbers"
    if bases and (manifest.parent is None or bases[-1] > manifest.parent):
        return "a base comes after the parent"
    texts = (*manifest.tags, *manifest.tags.values())
    if len(manifest.tags) > MAX_TAGS or not all(isinstance(text, str) and len(text) <= MAX_TAG_CHARACTERS for text in texts):
        return f"tags are at most {MAX_TAGS} short texts"
    return None
