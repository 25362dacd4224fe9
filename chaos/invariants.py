"""Are a commit's objects all there, byte for byte (I2)? And was every restore that of a commit (I5, I8)?

Parsed here from the bytes, without ckptd's code: a mistake in its reader must not hide one in its writer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgpack
from xxhash import xxh3_128_digest

from chaos.logbook import Committed, Logbook, Story
from chaos.objects import Objects
from chaos.planes import raw_bytes_of

_HEAD = struct.Struct("<8sIIII")
_SECTION = struct.Struct("<24sQQ")
SEGMENT = struct.Struct("<IIQQ")  # writer, base (0: own), n, bytes
FRAME = struct.Struct("<IIQII16s16s")  # segment, codec, offset, stored bytes, raw bytes, raw hash, stored hash
_RECENT = 10  # log records that every look reads again; a thorough one reads all


@dataclass(frozen=True, slots=True)
class Restored:
    """A rank's word on what it has restored; ``step`` 0: nothing."""

    rank: int
    step: int
    world: int
    generation: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a coordinator has named to a generation; ``seq`` None: nothing."""

    seq: int | None
    step: int
    manifest: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Somebody was told that this snapshot is durable."""

    seq: int
    step: int
    generation: tuple[int, int]


class Inspector:
    """Checks one job's store as it grows: each commit's objects once, and all of them again at the end."""

    def __init__(self, objects: Objects, job: str) -> None:
        self._objects = objects
        self._job = job
        self._sound: set[str] = set()
        self._told: set[Acknowledged] = set()
        self.logbook = Logbook(objects, job)
        self.contents: Callable[[Committed], Iterable[str]] = lambda _: ()
        """What else is wrong with a commit whose objects are sound, for jobs whose bytes are known."""
        self.damaged: set[int] = set()
        """Log numbers of commits that the campaign itself has damaged: they may be put aside."""

    def look(
        self,
        restored: Sequence[Restored],
        offers: Sequence[Offer],
        acknowledged: Sequence[Acknowledged] = (),
        thorough: bool = False,
    ) -> list[str]:
        """All that does not hold now. ``thorough``: read log and objects that were found sound before, too."""
        story = self.logbook.read()
        problems = [*story.problems, *self.logbook.audit(None if thorough else _RECENT)]
        problems += [
            f"I2: commit {seq} was ended by a {kind}, and nobody damaged it"
            for seq, kind in story.ended.items()
            if kind != "RETIRE" and seq not in self.damaged
        ]
        for commit in story.commits:
            if story.ended.get(commit.seq) == "RETIRE":
                continue  # retention's work; what it still has may go any time
            if commit.seq not in self.damaged and (thorough or commit.manifest not in self._sound):
                found = [
                    f"I2: commit {commit.seq}: {problem}"
                    for problem in damages(self._objects, self._job, commit, {one.seq: one.attempt for one in story.commits})
                ]
                found = found or [f"I5: commit {commit.seq}: {problem}" for problem in self.contents(commit)]
                problems += found
                if not found:
                    self._sound.add(commit.manifest)
        problems += wrong_acknowledgements(story, [told for told in acknowledged if told not in self._told])
        self._told.update(acknowledged)
        return problems + wrong_restores(story, restored) + wrong_offers(story, offers)


def wrong_acknowledgements(story: Story, acknowledged: Sequence[Acknowledged]) -> list[str]:
    """What somebody was told to be durable, and the log does not have. Pure."""
    committed = {(commit.seq, commit.step, commit.generation) for commit in story.commits}
    return [
        f"I4: acknowledged, but not in the log: record {told.seq} step {told.step} generation {told.generation}"
        for told in acknowledged
        if (told.seq, told.step, told.generation) not in committed
    ]


def wrong_restores(story: Story, restored: Sequence[Restored]) -> list[str]:
    """Restores of anything but the newest commit of that moment. Pure."""
    return [
        f"I8: rank {one.rank} of generation {one.generation} restored step {one.step}, the newest committed was {may[0]}"
        for one in restored
        if one.step not in (may := story.restorable(one.generation))
    ]


def wrong_offers(story: Story, offers: Sequence[Offer]) -> list[str]:
    """What a coordinator named without the log having it. Pure."""
    committed = {(commit.seq, commit.step, commit.manifest) for commit in story.commits}
    return [
        f"offered, but never committed: record {offer.seq} step {offer.step} manifest {offer.manifest}"
        for offer in offers
        if offer.seq is not None and (offer.seq, offer.step, offer.manifest) not in committed
    ]


def damages(objects: Objects, job: str, commit: Committed, attempts: Mapping[int, str]) -> Iterator[str]:
    """What is missing or wrong among a commit's objects. ``attempts``: the log's, by record, of the commits before."""
    manifest = yield from _named(objects, f"{job}/manifest/{commit.manifest}", commit.manifest, None)
    if manifest is None:
        return
    fields: dict[str, Any] = msgpack.unpackb(manifest)
    if (fields["job"], fields["attempt"], fields["parent"]) != (job, commit.attempt, commit.parent):
        yield f"its manifest is one of {fields['job']} {fields['attempt']} after {fields['parent']}"
    if tuple(seq for seq, _, _ in fields["bases"]) != commit.bases:
        yield f"its manifest has the bases {fields['bases']}, its record {commit.bases}"
    wrong = [seq for seq, attempt, _ in fields["bases"] if attempts.get(seq) != attempt]
    if wrong:
        yield f"its manifest has other attempts for its bases {wrong} than the log"
    yield from _named(objects, f"{job}/layout/{commit.attempt.partition('.')[0]}/{fields['layout'][0]}", *fields["layout"])
    index = yield from _named(objects, f"{job}/data/{commit.attempt}/{fields['index'][0]}.idx", *fields["index"])
    if index is not None:
        yield from _segments(objects, sections_of(index), places_of(job, fields))


def places_of(job: str, manifest: Mapping[str, Any]) -> list[str]:
    """What keys of segments begin with: own ones, then those of each base."""
    return [f"{job}/data/{attempt}/" for attempt in (manifest["attempt"], *(attempt for _, attempt, _ in manifest["bases"]))]


def _named(objects: Objects, key: str, digest: str, size: int | None) -> Generator[str, None, bytes | None]:
    """A generator of problems whose value is the object's bytes, None when they can't be used."""
    data = objects.get(key)
    if data is None:
        yield f"{key} is missing"
        return None
    if hashlib.blake2b(data, digest_size=32).hexdigest() != digest or size not in (None, len(data)):
        yield f"{key} has not the bytes that its digest names"
        return None
    return data


def sections_of(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A column file's sections: name → (rows, all bytes from its start)."""
    _, _, _, count, _ = _HEAD.unpack_from(data)
    found = {}
    for number in range(count):
        name, start, rows = _SECTION.unpack_from(data, _HEAD.size + number * _SECTION.size)
        found[name.rstrip(b"\0").decode()] = (rows, data[start:])
    return found


def _segments(objects: Objects, sections: dict[str, tuple[int, bytes]], places: Sequence[str]) -> Iterator[str]:
    writers = writers_of(sections)
    rows, table = sections["segments"]
    count, frames = sections["frames"]
    by_segment: dict[int, list[tuple[int, int, int, int, bytes, bytes]]] = {}
    for i in range(count):
        segment, codec, offset, stored, raw, raw_hash, stored_hash = FRAME.unpack_from(frames, i * FRAME.size)
        by_segment.setdefault(segment, []).append((codec, offset, stored, raw, raw_hash, stored_hash))
    for number in range(rows):
        writer, base, n, size = SEGMENT.unpack_from(table, number * SEGMENT.size)
        key = f"{places[base]}{writers[writer]}-{n}.seg"
        data = objects.get(key)
        if data is None:
            yield f"{key} is missing"
        elif len(data) != size:
            yield f"{key} has {len(data)} bytes, the index says {size}"
        else:
            yield from (f"{key} is damaged: {problem}" for problem in _frames(data, by_segment.get(number, [])))


def _frames(data: bytes, frames: Sequence[tuple[int, int, int, int, bytes, bytes]]) -> Iterator[str]:
    for codec, offset, stored, raw, raw_hash, stored_hash in frames:
        body = data[offset : offset + stored]
        if len(body) != stored or xxh3_128_digest(body) != stored_hash:
            yield f"the frame at {offset} has not the stored bytes that its hash names"
            continue
        plain = raw_bytes_of(codec, body, raw)
        if len(plain) != raw or xxh3_128_digest(plain) != raw_hash:
            yield f"the frame at {offset} has not the raw bytes that its hash names"


def writers_of(sections: dict[str, tuple[int, bytes]]) -> list[str]:
    """An index's writers."""
    count, ends = sections["writer_ends"]
    _, text = sections["writer_text"]
    bounds = [0, *struct.unpack_from(f"<{count}q", ends)]
    return [text[start:end].decode() for start, end in pairwise(bounds)]
