"""The folded state's bytes: canonical, strict, and what decides collection and restore."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptd.commit.catalog import Status, catalog
from ckptd.commit.fold import collectable, fold, restore_candidate
from ckptd.commit.state import EMPTY, EMPTY_HASH, State, decode_state, encode_state, state_hash
from ckptd.errors import CorruptError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import GENESIS, Abort, Body, Commit, Epoch, Forget, Office, Pin, Quarantine, Record, Retire, Unpin
from tests.commit.histories import random_history

HASH = "ab" * 32
OFFICE = Office(1, "0" * 32)


def attempt(step: int) -> Attempt:
    return Attempt(Snapshot(Generation(1, 1), step), 0)


def folded(*bodies: Body) -> State:
    """The state after these records of one office, all of which must count."""
    state = EMPTY
    for seq, body in enumerate(bodies):
        nonce = f"{seq:032x}"
        office = Office(body.number, nonce) if isinstance(body, Epoch) else None if isinstance(body, Pin | Unpin) else OFFICE
        state, verdict = fold(state, Record(seq, nonce, GENESIS, HASH, office, body))
        assert verdict.counted, verdict
    return state


def commit(step: int, parent: int | None = None, *bases: int) -> Commit:
    return Commit(attempt(step), HASH, parent, bases)


FULL = folded(Epoch(1), commit(10), commit(20, 1, 1), Abort(attempt(30)), Pin(1, "me"), Pin(1, "you"), Quarantine(2, "bad"))


def test_the_bytes_are_what_format_md_says() -> None:
    """Changing this breaks the chain of every log there is."""
    assert EMPTY_HASH == "264fb4b8e39943cb8012fe44694c09264b9a3f6b64cb28720c5bb6b66c1bc720"
    assert json.loads(encode_state(FULL)) == {
        "aborted": [[3, "1-1.30.0"]],
        "commits": [[1, "1-1.10.0", HASH, None, [], None, None], [2, "1-1.20.0", HASH, 1, [1], None, 6]],
        "forgotten": None,
        "last": FULL.last,
        "next": 7,
        "office": [1, "0" * 32],
        "pins": [[1, ["me", "you"]]],
        "v": 1,
    }
    assert decode_state(encode_state(FULL)) == FULL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"next":7', '"next":6'),
        ('"next":7', '"next":true'),
        ('"next":7', '"next":-1'),
        ('"v":1', '"v":2'),
        ('[1,["me","you"]]', '[1,["you","me"]]'),
        ('[1,["me","you"]]', '[1,["me","me"]]'),
        ('[1,["me","you"]]', "[1,[]]"),
        ('[1,["me","you"]]', '[3,["me","you"]]'),
        ('[1,["me","you"]]', '[true,["me","you"]]'),
        ('[1,["me","you"]]', '[1,["me","yo u"]]'),
        ("[1],null,6]", "[1],6,6]"),
        ("[1],null,6]", "[1],null,1]"),
        ("[1],null,6]", "[1],null,7]"),
        ("1,[1],null", "1,[2],null"),
        ("1,[1],null", "2,[1],null"),
        ("1,[1],null", "0,[1],null"),
        ("1,[1],null", "true,[1],null"),
        ('"1-1.20.0"', '"1-1.10.0"'),
        ('"1-1.30.0"', '"1-1.10.0"'),
        ('[[3,"1-1.30.0"]]', '[[3,"1-1.30.0"],[3,"1-1.30.0"]]'),
        ('[[3,"1-1.30.0"]]', '[[3,"1-1.40.0"],[3,"1-1.30.0"]]'),
        ('[[3,"1-1.30.0"]]', "[[3]]"),
        ('"office":[1,', '"office":[true,'),
        ('"office":[1,', '"office":[1,1,'),
        (f'"{HASH}"', '"x"'),
    ],
)
def test_what_no_fold_gives_is_refused(old: str, new: str) -> None:
    text = encode_state(FULL).decode()
    assert old in text
    with pytest.raises(CorruptError):
        decode_state(text.replace(old, new, 1).encode())


HALF_FORGOTTEN = folded(
    *(Epoch(1), commit(10), Abort(attempt(15)), commit(20, 1), commit(30, 3, 3), commit(40, 4), Retire(1), Retire(3)),
    *(Abort(attempt(35)), Forget(attempt(35).snapshot)),
)


def test_what_is_over_is_forgotten_and_what_is_needed_is_not() -> None:
    assert json.loads(encode_state(HALF_FORGOTTEN)) == {
        "aborted": [[8, "1-1.35.0"]],
        "commits": [
            [3, "1-1.20.0", HASH, 1, [], 7, None],
            [4, "1-1.30.0", HASH, 3, [3], None, None],
            [5, "1-1.40.0", HASH, 4, [], None, None],
        ],
        "forgotten": [9, "1-1.35"],
        "last": HALF_FORGOTTEN.last,
        "next": 10,
        "office": [1, "0" * 32],
        "pins": [],
        "v": 1,
    }
    assert decode_state(encode_state(HALF_FORGOTTEN)) == HALF_FORGOTTEN
    may_go = collectable(HALF_FORGOTTEN)
    assert may_go.commit(1, attempt(10)) == may_go.attempt(attempt(15)) == may_go.attempt(attempt(31)) == 9
    assert may_go.commit(3, attempt(20)) is None and may_go.attempt(attempt(36)) is None
    assert HALF_FORGOTTEN.forgets(attempt(15)) and not HALF_FORGOTTEN.forgets(attempt(30))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[9,"1-1.35"]', '[10,"1-1.35"]'),
        ('[9,"1-1.35"]', '["1-1.35"]'),
        ('[9,"1-1.35"]', '[9,"1-1.35.0"]'),
        ('[9,"1-1.35"]', '[9,"1-1.36"]'),  # an abort of before it
        ('[9,"1-1.35"]', "null"),  # then a parent is missing
        ("3,[3],null,null", "3,[2],null,null"),  # a base of a live commit
    ],
)
def test_what_no_fold_forgets_is_refused(old: str, new: str) -> None:
    text = encode_state(HALF_FORGOTTEN).decode()
    assert old in text
    with pytest.raises(CorruptError):
        decode_state(text.replace(old, new, 1).encode())


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"v":1}')
def test_garbage_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_state(data)


@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 50))
def test_a_flipped_byte_is_refused_or_means_itself(place: int, byte: int, seed: int) -> None:
    state = random_history(random.Random(seed), 12).states[-1]
    data = bytearray(encode_state(state))
    data[place % len(data)] = byte
    try:
        found = decode_state(bytes(data))
    except CorruptError:
        return
    assert encode_state(found) == bytes(data)
    assert (state_hash(found) == state_hash(state)) == (found == state)


def test_a_restore_takes_the_last_live_commit() -> None:
    assert restore_candidate(EMPTY) is None
    assert restore_candidate(FULL) == FULL.commits[1]
    assert restore_candidate(folded(Epoch(1), commit(10), Retire(1))) is None


def gone(state: State) -> dict[int, int]:
    """Commits that may go, each with the record that lets it."""
    since = {n: collectable(state).commit(n, entry.attempt) for n, entry in state.commits.items()}
    return {n: at for n, at in since.items() if at is not None}


def test_a_pin_holds_back_collection_until_the_last_unpin() -> None:
    bodies = [Epoch(1), commit(10), commit(20, 1), Pin(1, "me"), Pin(1, "you"), Retire(1), Unpin(1, "me")]
    assert gone(folded(*bodies)) == {}
    assert gone(folded(*bodies, Unpin(1, "you"))) == {1: 5}


def test_a_base_stays_as_long_as_its_users_and_a_base_of_theirs_only_if_they_name_it() -> None:
    bodies = [Epoch(1), commit(10), commit(20, 1, 1), commit(30, 2, 2)]
    assert gone(folded(*bodies, Retire(1))) == {}  # record 2 is live
    assert gone(folded(*bodies, Retire(1), Retire(2))) == {1: 4}
    assert gone(folded(*bodies, Retire(1), Retire(2), commit(40, 3), Retire(3))).keys() == {1, 2, 3}


def test_only_an_accepted_abort_frees_an_attempt() -> None:
    assert [collectable(FULL).attempt(attempt(step)) for step in (10, 20, 30, 40)] == [None, None, 3, None]


def test_the_catalog_lists_every_commit() -> None:
    state = folded(Epoch(1), commit(10), commit(20, 1), commit(30, 2), Pin(2, "me"), Retire(1), Quarantine(3, "bad"))
    assert [(e.seq, e.step, e.status, e.newest, e.pins) for e in catalog(state)] == [
        (1, 10, Status.RETIRED, False, ()),
        (2, 20, Status.LIVE, True, ("me",)),
        (3, 30, Status.QUARANTINED, False, ()),
    ]
    first = catalog(state)[0]
    assert (first.generation, first.manifest, first.parent, first.attempt) == (Generation(1, 1), HASH, None, attempt(10))
