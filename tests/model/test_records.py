"""Log records: every record comes back from its bytes; every other byte string is a CorruptError (I11)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptd.errors import CorruptError, NewerFormatError
from ckptd.model.canonical import canonical, digest
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import (
    GENESIS,
    MAX_BASES,
    MAX_RECORD_BYTES,
    Abort,
    Commit,
    Epoch,
    Forget,
    Office,
    Pin,
    Quarantine,
    Record,
    Retire,
    Unpin,
    clean_reason,
    decode,
    encode,
)

HASH = digest(b"x")
NONCE = "0123456789abcdef" * 2
ATTEMPT = Attempt(Snapshot(Generation(3, 2), 100), 1)

numbers = st.integers(0, 10**15 - 1)
hashes = st.binary(max_size=4).map(digest)
nonces = st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}")
snapshots = st.builds(Snapshot, st.builds(Generation, st.integers(0, 10**10 - 1), st.integers(0, 10**10 - 1)), numbers)
attempts = st.builds(Attempt, snapshots, st.integers(0, 10**6 - 1))
whos = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", fullmatch=True)
office_bodies = st.one_of(
    st.builds(Commit, attempts, hashes, st.none() | numbers, st.lists(numbers, unique=True, max_size=9).map(sorted).map(tuple)),
    st.builds(Abort, attempts),
    st.builds(Retire, numbers),
    st.builds(Quarantine, numbers, st.text().map(clean_reason)),
    st.builds(Forget, snapshots),
)
free_bodies = st.builds(Pin, numbers, whos) | st.builds(Unpin, numbers, whos)


@st.composite
def records(draw: st.DrawFn) -> Record:
    nonce, place = draw(nonces), (draw(numbers), draw(nonces), draw(hashes), draw(hashes))
    match draw(st.sampled_from(("epoch", "office", "free"))):
        case "epoch":
            number = draw(numbers)
            return Record(place[0], nonce, place[2], place[3], Office(number, nonce), Epoch(number))
        case "office":
            return Record(*place, Office(draw(numbers), nonce), draw(office_bodies))
    return Record(*place, None, draw(free_bodies))


OFFICE = Office(1, NONCE)


def record(body: Any = None, office: Office | None = OFFICE, seq: int = 5) -> Record:
    return Record(seq, NONCE, GENESIS, HASH, office, body or Commit(ATTEMPT, HASH, 2, (2, 4)))


@given(records())
def test_a_record_comes_back(one: Record) -> None:
    data = encode(one)
    assert decode(one.seq, data) == one
    assert encode(decode(one.seq, data)) == data
    assert len(data) <= MAX_RECORD_BYTES


def test_the_biggest_record_fits_its_bound() -> None:
    bases = tuple(range(10**15 - 1 - MAX_BASES, 10**15 - 1))
    assert len(encode(record(Commit(ATTEMPT, HASH, 1, bases)))) <= MAX_RECORD_BYTES
    assert len(encode(record(Quarantine(1, "\N{GRINNING FACE}" * 500)))) <= MAX_RECORD_BYTES


def test_the_bytes_are_what_format_md_says() -> None:
    """Changing this breaks every log there is."""
    assert encode(record()) == (
        b'{"body":{"attempt":"3-2.100.1","bases":[2,4],"manifest":"%s","parent":2,"type":"COMMIT"},"nonce":"%s",'
        b'"office":[1,"%s"],"previous":"%s","seq":5,"state":"%s","v":1}'
    ) % tuple(text.encode() for text in (HASH, NONCE, NONCE, GENESIS, HASH))
    assert GENESIS == "a2d86d34c68ae5594fe70361b9c5cbaf570ba26987ed19d866a23f5ccb758e2a"


@given(st.binary(max_size=300))
@example(b"")
@example(b"null")
@example(b"[" * 60_000)
@example(b"9" * 6_000)
@example(b'{"v":1}')
@example(b"NaN")
@example(b'"\\ud800"')
def test_garbage_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(0, data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(HASH) | st.just(NONCE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(records(), st.data())
def test_a_changed_field_is_refused_or_means_itself(one: Record, data: st.DataObject) -> None:
    fields = json.loads(encode(one))
    target = data.draw(st.sampled_from((fields, fields["body"])))
    target[data.draw(st.sampled_from(sorted(target)) | st.text(max_size=3))] = data.draw(json_values)
    changed = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    try:
        found = decode(one.seq, changed)
    except CorruptError:
        return
    assert encode(found) == changed


@given(records(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_means_itself(one: Record, place: int, byte: int) -> None:
    data = bytearray(encode(one))
    data[place % len(data)] = byte
    try:
        found = decode(one.seq, bytes(data))
    except CorruptError:
        return
    assert encode(found) == bytes(data)


def test_a_newer_record_is_refused_by_name_whatever_fields_it_has() -> None:
    """Its version is its minimum reader, too: who can't fold one record knows nothing of those after it."""
    with pytest.raises(NewerFormatError, match="newer ckptd: format 2; this ckptd reads up to 1: upgrade it"):
        decode(5, b'{"surprise":[1],"v":2}')


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seq":5', '"seq":6'),
        ('"seq":5', '"seq":true'),
        ('"seq":5', '"seq":5.0'),
        ('"seq":5', '"seq": 5'),
        ('"seq":5', '"seq":5,"seq":5'),
        ('"seq":5', '"seq":-5'),
        ('"v":1', '"v":2'),
        ('"v":1', '"v":true'),
        ('"v":1', '"v":1,"w":1'),
        ('"parent":2', '"parent":true'),
        ('"parent":2', '"parent":1000000000000000'),
        ('"bases":[2,4]', '"bases":[4,2]'),
        ('"bases":[2,4]', '"bases":[2,2]'),
        ('"bases":[2,4]', '"bases":[false,2]'),
        ('"bases":[2,4]', '"bases":[[2]]'),
        ('"bases":[2,4]', '"bases":"24"'),
        ('"bases":[2,4]', '"bases":{"2":4}'),
        ('"3-2.100.1"', '"3-2.0100.1"'),
        ('"3-2.100.1"', "3"),
        ('"COMMIT"', '"commit"'),
        ('"COMMIT"', '"ABORT"'),
        ('"COMMIT"', "[]"),
        ('"office":[1,', '"office":[true,'),
        ('"office":[1,', '"office":[1,1,'),
        (f'"office":[1,"{NONCE}"]', '"office":null'),
        (f'"office":[1,"{NONCE}"]', '"office":[1,[]]'),
        (f'"previous":"{GENESIS}"', f'"previous":"{GENESIS.upper()}"'),
        (f'"previous":"{GENESIS}"', '"previous":null'),
        (f'"nonce":"{NONCE}"', f'"nonce":"{NONCE}0"'),
    ],
)
def test_what_we_would_not_have_written_is_refused(old: str, new: str) -> None:
    text = encode(record()).decode()
    assert old in text
    with pytest.raises(CorruptError):
        decode(5, text.replace(old, new).encode())


def test_too_big_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(CorruptError, match="65536"):
        decode(0, b" " * (MAX_RECORD_BYTES + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        record(Epoch(2), Office(1, NONCE)),
        record(Epoch(1), Office(1, "f" * 32)),
        record(Pin(1, "me")),
        record(Retire(1), None),
        record(Pin(1, "two words"), None),
        record(Pin(1, ""), None),
        record(Quarantine(1, "two\nlines")),
        record(Quarantine(1, "\ud800")),
        record(Quarantine(1, "x" * 501)),
        record(Retire(True)),
        record(Commit(ATTEMPT, "short", None, ())),
        record(Commit(ATTEMPT, HASH, None, tuple(range(MAX_BASES + 1)))),
        record(Abort(Attempt(Snapshot(Generation(1, 1), 10**15), 0))),
        record(Abort(Attempt(Snapshot(Generation(1, 1), 1), -1))),
        record(seq=-1),
    ],
)
def test_encode_refuses_what_decode_would(wrong: Record) -> None:
    with pytest.raises(ValueError, match="not a log record"):
        encode(wrong)


@given(st.text(max_size=2000))
def test_any_reason_can_be_cleaned(text: str) -> None:
    assert decode(5, encode(record(Quarantine(1, clean_reason(text))))).body == Quarantine(1, clean_reason(text))


def test_canonical_is_sorted_dense_ascii() -> None:
    assert canonical({"b": ["é", None], "a": 1}) == b'{"a":1,"b":["\\u00e9",null]}'
