"""The checker bites: a real store is damaged in one way at a time, and the damage is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos.invariants import Inspector, Offer, Restored
from chaos.logbook import tell
from chaos.objects import DirectoryObjects
from tests.e2e.harness import Job

JOB = "e2e"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two commits of one real trainer."""
    directory = tmp_path_factory.mktemp("sound")
    with Job(directory, every=4) as job:
        job.world(1, ["--mode", "plain", "--until", "8", "--durable"]).wait()
    return directory / "store"


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def look(store: Path, restored: list[Restored] | None = None, offers: list[Offer] | None = None) -> str:
    return "\n".join(Inspector(DirectoryObjects(store), JOB).look(restored or [], offers or []))


def records(store: Path) -> list[Path]:
    return sorted(path for path in (store / JOB / "log").iterdir() if path.name.isdigit())


def one(store: Path, pattern: str) -> Path:
    return min((store / JOB).glob(pattern))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(first: Path, second: Path) -> None:
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def append(store: Path, body: dict[str, Any], office: list[object] | None = None, nonce: str = "ab" * 16) -> None:
    """A record in its place, as a broken coordinator would write it."""
    last = records(store)[-1].read_bytes()
    before = json.loads(last)
    record = {**before, "body": body, "nonce": nonce, "office": office or before["office"], "seq": before["seq"] + 1}
    record["previous"] = hashlib.blake2b(last, digest_size=32).hexdigest()
    data = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    (store / JOB / "log" / f"{record['seq']:020d}").write_bytes(data)


def commit(attempt: str = "1-1.12.0", **fields: object) -> dict[str, Any]:
    return {"type": "COMMIT", "attempt": attempt, "manifest": "0" * 64, "parent": 2, "bases": [], **fields}


def test_a_sound_store(store: Path) -> None:
    story = tell([path.read_bytes() for path in records(store)])
    assert [one.step for one in story.commits] == [4, 8]
    last = story.commits[-1]
    assert last.seq == 2, "the tests below rest on it"
    generation = last.generation[0], last.generation[1] + 1
    assert look(store, [Restored(0, 8, 1, generation)], [Offer(last.seq, 8, last.manifest)]) == ""


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda store: flip(one(store, "data/*/*.seg")), ".seg is damaged: the frame at"),
        (lambda store: one(store, "data/*/*.seg").unlink(), ".seg is missing"),
        (lambda store: one(store, "data/*/*.seg").write_bytes(b"short"), ".seg has 5 bytes"),
        (lambda store: flip(one(store, "data/*/*.idx")), ".idx has not the bytes"),
        (lambda store: one(store, "manifest/*").unlink(), "is missing"),
        (lambda store: flip(one(store, "manifest/*")), "has not the bytes"),
        (lambda store: one(store, "layout/*/*").unlink(), "is missing"),
        (lambda store: swap(*records(store)[1:3]), "the hash chain breaks before log record 1"),
        (lambda store: flip(records(store)[0]), "the hash chain breaks before log record 1"),
        (lambda store: records(store)[1].unlink(), "the log has a gap"),
        (lambda store: append(store, commit()), "I2: commit 3: e2e/manifest/000"),
        (lambda store: append(store, commit(parent=1)), "I8: log record 3 has parent 1"),
        (lambda store: append(store, commit("1-1.2.0")), "I10: log record 3 commits 1-1.2.0"),
        (lambda store: append(store, commit(), [1, "cd" * 16]), "I3: log record 3 (COMMIT) is of office"),
        (lambda store: append(store, {"type": "EPOCH", "number": 1}, [1, "ab" * 16]), "I3: log record 3 is an EPOCH 1"),
        (lambda store: append(store, {"type": "QUARANTINE", "n": 2, "reason": "x"}), "commit 2 was ended by a QUARANTINE"),
    ],
)
def test_damage_is_named(store: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(store)
    assert named in look(store)


def test_a_record_that_changes(store: Path) -> None:
    inspector = Inspector(DirectoryObjects(store), JOB)
    assert inspector.look([], []) == []
    body = json.loads(records(store)[-1].read_bytes())
    records(store)[-1].write_bytes(json.dumps({**body, "nonce": "ef" * 16}).encode())
    assert "I1: log record 2 was replaced" in inspector.look([], [])


def test_restores_of_anything_but_the_newest_commit(store: Path) -> None:
    generation = tell([path.read_bytes() for path in records(store)]).commits[-1].generation
    after = (generation[0], generation[1] + 1)
    assert "restored step 4, the newest committed was 8" in look(store, [Restored(0, 8, 2, after), Restored(1, 4, 2, after)])
    assert "restored step 0" in look(store, [Restored(0, 0, 1, after)])
    assert "offered, but never committed" in look(store, offers=[Offer(2, 8, "1" * 64)])
