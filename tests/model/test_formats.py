"""Parts, layouts, indexes and manifests: deterministic bytes, and a typed error for whatever isn't one (I11)."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptd.commit.assemble import merge
from ckptd.errors import ConfigError, CorruptError, NewerFormatError
from ckptd.model.dtypes import dtype_code, dtype_name, item_bytes
from ckptd.model.index import decode_index
from ckptd.model.layout import decode_layout
from ckptd.model.manifest import BaseRef, Manifest, ObjectRef, decode_manifest
from ckptd.model.part import Part
from ckptd.model.segment import Segment
from ckptd.pipeline.unchanged import ANEW, refer, remember
from ckptd.pipeline.write import WriteOptions
from ckptd_client.messages.saving import Item
from tests.restore.states import ATTEMPT, Slot, region, save


class Memory:
    """Takes puts and forgets them."""

    url = "memory"

    async def put(self, key: str, data: object) -> None:
        pass


def parts(steps: int = 0) -> list[Part]:
    """Two writers with two ranks each; object lengths change with ``steps``."""
    slots = [Slot(rank) for rank in range(4)]
    weight = np.arange(70, dtype="<u4").reshape(10, 7)
    for slot in slots:
        slot.tensor("model.weight", "float32", weight, *region(weight.shape, 0, slot.rank, 4))
        slot.object("rng", b"r" * (20 + steps), "rank")
    slots[3].tensor("model.scale", "bfloat16", np.array(1, "<u2"), (), ())
    slots[1].object("scheduler", b"s" * (30 + steps), "global")
    with ThreadPoolExecutor(1) as pool:
        nodes = [[slot.source() for slot in slots[:2]], [slot.source() for slot in slots[2:]]]
        made, _ = asyncio.run(save(Memory(), nodes, WriteOptions(frame_bytes=48, segment_bytes=100), pool))  # type: ignore[arg-type]
    return made


def referring(part: Part, seq: int, writer: str, every: int) -> Part:
    """The part of ``writer`` that comes after one committed as ``seq``, when every so many-th frame has changed."""
    count = len(part.frames)
    anew = np.arange(count) % every == 0
    frames = part.frames.copy()
    ends = np.cumsum(frames["stored_bytes"][anew])
    frames["offset"][anew], frames["segment"][anew] = ends - frames["stored_bytes"][anew], 0
    items = [Item(e.fqn, "", "", "", (), (), (), i, 0) for i, e in enumerate(part.entries)]
    base = remember(seq, [(0, items)], part)
    rows = np.where(anew, ANEW, np.arange(count))
    writers, bases, segments, table = refer(writer, [Segment(0, 77, int(ends[-1]))], frames, base, rows)
    return Part(writers, part.ranks, bases, segments, table, part.entries)


PARTS = parts()
LAYOUT, INDEX, _ = merge(PARTS, 4)
REF = ObjectRef("ab" * 32, 1000)
BASES = (BaseRef(3, ATTEMPT, 7), BaseRef(9, ATTEMPT, 1))
MANIFEST = Manifest("job", ATTEMPT, 4, 17, REF, REF, 10**12, 10**11, BASES, {"b": "2", "a": "1"})
REFERRING = [referring(referring(PARTS[0], 3, "n0.zz", 2), 9, "n0.bb", 3), referring(PARTS[1], 9, "n1.aa", 2)]
_, REFERRING_INDEX, _ = merge(REFERRING, 4)
FORMATS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (PARTS[0].encode(), lambda data: Part.decode(data).encode()),
    (LAYOUT.encode(), lambda data: decode_layout(data).encode()),
    (INDEX.encode(), lambda data: decode_index(data, LAYOUT, 0).encode()),
    (REFERRING[0].encode(), lambda data: Part.decode(data).encode()),
    (REFERRING_INDEX.encode(), lambda data: decode_index(data, LAYOUT, 2).encode()),
    (MANIFEST.encode(), lambda data: decode_manifest(data).encode()),
]
NAMES = ["part", "layout", "index", "referring part", "referring index", "manifest"]
COLUMN_FILES = len(FORMATS) - 1


@pytest.mark.parametrize(("data", "again"), FORMATS, ids=NAMES)
def test_decoding_and_encoding_again_gives_the_same_bytes(data: bytes, again: Callable[[bytes], bytes]) -> None:
    assert again(data) == data


def test_the_order_of_the_parts_does_not_matter_and_the_layout_stays_from_step_to_step() -> None:
    layout, index, _ = merge(PARTS[::-1], 4)
    assert (layout.encode(), index.encode()) == (LAYOUT.encode(), INDEX.encode())
    later_layout, later_index, _ = merge(parts(steps=5), 4)
    assert later_layout.encode() == LAYOUT.encode()
    assert later_index.encode() != INDEX.encode()


@pytest.mark.parametrize(("data", "again"), FORMATS, ids=NAMES)
def test_every_flipped_bit_gives_a_typed_error_or_another_value_with_exactly_these_bytes(
    data: bytes, again: Callable[[bytes], bytes]
) -> None:
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            parses_only_as_itself(bytes(damaged), again)


@pytest.mark.parametrize(("data", "again"), FORMATS, ids=NAMES)
def test_every_cut_off_object_is_refused(data: bytes, again: Callable[[bytes], bytes]) -> None:
    for length in range(len(data)):
        with pytest.raises(CorruptError):
            again(data[:length])
    with pytest.raises(CorruptError):
        again(data + b"\0")


@settings(max_examples=300)
@given(st.sampled_from(range(len(FORMATS))), st.data())
def test_random_and_spliced_bytes_raise_nothing_but_corrupt_error(which: int, data: st.DataObject) -> None:
    original, again = FORMATS[which]
    junk = data.draw(st.binary(max_size=64))
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(start + 64, len(original))))
    parses_only_as_itself(original[:start] + junk + original[end:], again)
    parses_only_as_itself(junk, again)


@settings(max_examples=500)
@given(
    st.sampled_from(range(COLUMN_FILES)),
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1]),
)
@example(0, 2, 2**64 - 1)
def test_extreme_numbers_anywhere_allocate_nothing(which: int, place: int, number: int) -> None:
    original, again = FORMATS[which]
    at = place % (len(original) // 8) * 8
    parses_only_as_itself(original[:at] + struct.pack("<Q", number) + original[at + 8 :], again)


def parses_only_as_itself(data: bytes, again: Callable[[bytes], bytes]) -> None:
    try:
        value = again(data)
    except CorruptError:
        return
    assert value == data


def test_a_referring_index_names_what_it_needs_of_others_and_shares_it() -> None:
    assert REFERRING[0].bases == (3, 9) and REFERRING[1].bases == (9,)
    assert REFERRING_INDEX.writers == ("n0.bb", "n1.aa", "n0.aa", "n0.zz")
    assert {segment.base for segment in REFERRING_INDEX.segments} == {0, 1, 2}
    assert sum(REFERRING_INDEX.stored_by_base()) == int(REFERRING_INDEX.frames["stored_bytes"].sum())
    assert all(size > 0 for size in REFERRING_INDEX.stored_by_base())
    assert [place.tobytes() for place in REFERRING_INDEX.places] == [place.tobytes() for place in INDEX.places]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames, of_base: frames["offset"].__setitem__(of_base[0], 1 << 40), "outside of its segment"),
        (lambda frames, of_base: frames.__setitem__(of_base[1], frames[of_base[0]]), "overlap"),
        (lambda frames, of_base: frames["segment"].__setitem__(of_base, 0), "a segment without frames"),
    ],
)
def test_frames_of_bases_lie_apart_within_their_segments(change: Callable[[Any, Any], None], message: str) -> None:
    frames = REFERRING_INDEX.frames.copy()
    owned = sum(not segment.base for segment in REFERRING_INDEX.segments)
    change(frames, np.flatnonzero(frames["segment"] >= owned))
    with pytest.raises(CorruptError, match=message):
        decode_index(dataclasses.replace(REFERRING_INDEX, frames=frames).encode(), LAYOUT, 2)


@pytest.mark.parametrize("column", ["nbytes", "first_frame", "frame_count", "frame_offset"])
@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_place_outside_of_its_frames_is_refused(column: str, change: int) -> None:
    for row in range(len(INDEX.places)):
        places = INDEX.places.copy()
        if int(places[row][column]) + change < 0:
            continue
        places[row][column] = int(places[row][column]) + change
        body = dataclasses.replace(INDEX, places=places).encode()
        try:
            index = decode_index(body, LAYOUT, 0)
        except CorruptError:
            continue
        # What still passes is another place with as many bytes, all within its frames.
        starts, place = index.frame_starts, index.places[row]
        begin = int(starts[place["first_frame"]]) + int(place["frame_offset"])
        assert column != "frame_count"
        assert begin < starts[place["first_frame"] + 1]
        assert begin + int(place["nbytes"]) <= starts[place["first_frame"] + place["frame_count"]]


@pytest.mark.parametrize("which", range(COLUMN_FILES), ids=NAMES[:COLUMN_FILES])
def test_newer_versions_are_refused_by_name(which: int) -> None:
    data, again = FORMATS[which]
    with pytest.raises(
        NewerFormatError, match="newer ckptd: format 2, for readers of 2 or later; this ckptd reads up to 1: upgrade it"
    ):
        again(data[:8] + struct.pack("<II", 2, 2) + data[16:])
    with pytest.raises(CorruptError, match="doesn't know version=2"):
        again(data[:8] + struct.pack("<II", 2, 1) + data[16:])


def test_a_newer_manifest_is_refused_by_name_whatever_fields_it_has() -> None:
    with pytest.raises(NewerFormatError, match=r"newer ckptd.*upgrade it"):
        decode_manifest(msgpack.packb({"version": 7, "reader": 5, "surprise": [1]}))
    with pytest.raises(CorruptError, match="impossible versions"):
        decode_manifest(msgpack.packb({"version": True, "reader": None}))


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 0},
        {"parent": -1},
        {"bases": (BaseRef(2, ATTEMPT, 1), BaseRef(1, ATTEMPT, 1))},
        {"bases": (BaseRef(18, ATTEMPT, 1),)},
        {"bases": (BaseRef(2, ATTEMPT, -1),)},
        {"layout": ObjectRef("AB" * 32, 1)},
        {"raw_bytes": -1},
        {"tags": {"x": "y" * 2000}},
    ],
    ids=str,
)
def test_a_manifest_that_could_not_be_read_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        dataclasses.replace(MANIFEST, **change).encode()  # type: ignore[arg-type]


def test_types_have_stable_codes_and_unknown_ones_are_refused() -> None:
    assert (item_bytes("bfloat16"), item_bytes("complex128"), item_bytes("float8_e5m2"), item_bytes("object")) == (2, 16, 1, 1)
    assert dtype_name(dtype_code("float32")) == "float32" and dtype_code("float32") == 12
    with pytest.raises(ConfigError, match="quint8"):
        item_bytes("quint8")
    with pytest.raises(CorruptError, match="code=200"):
        dtype_name(200)
