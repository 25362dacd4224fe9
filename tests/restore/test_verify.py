"""`ckptd verify` against a real log and real objects in a directory: finds what is damaged, names it, changes nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckptd.cli.app import app
from ckptd.cli.options import require_store
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.commit.patience import Patience
from ckptd.errors import ConfigError, UnavailableError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.pipeline.write import WriteOptions
from ckptd.store.directory import DirectoryStore
from tests.e2e.harness import free_port
from tests.restore.states import JOB, save
from tests.restore.test_damage import slots

OPTIONS = WriteOptions(frame_bytes=16, segment_bytes=40)
verify_command = sys.modules["ckptd.cli.verify"]  # the function has its name
STEPS = (10, 20, 30)


async def _saved(root: Path) -> None:
    store = DirectoryStore(root)
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    parent = None
    with ThreadPoolExecutor(2) as pool:
        for step in STEPS:
            attempt = Attempt(Snapshot(Generation(1, 1), step), 0)
            _, manifest = await save(
                store, [[slot.source()] for slot in slots()], OPTIONS, pool, attempt=attempt, parent=parent
            )
            parent = await committer.commit(attempt, manifest)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    asyncio.run(_saved(tmp_path / "store"))
    return tmp_path / "store"


def verify(root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["verify", "--store", str(root), "--job", JOB, "--json", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def found(report: dict[str, Any]) -> set[str]:
    return {bad["key"] for part in (report["log"], *report["checkpoints"]) for bad in part["bad"]}


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_all_is_good_and_nothing_is_changed(root: Path) -> None:
    before = files(root)
    code, report = verify(root, "--all", "--read-data")
    assert code == 0 and not found(report)
    assert report["log"] == {"first": 0, "tail": 3, "whole": True, "bad": []}
    assert [checkpoint["step"] for checkpoint in report["checkpoints"]] == list(STEPS)
    assert all(c["read_frames"] == c["frames"] > 5 and c["objects"] > 4 for c in report["checkpoints"])
    assert files(root) == before


def test_what_is_chosen(root: Path) -> None:
    assert [c["step"] for c in verify(root)[1]["checkpoints"]] == [30]
    assert [c["step"] for c in verify(root, "20")[1]["checkpoints"]] == [20]
    assert all(c["read_frames"] == 0 for c in verify(root)[1]["checkpoints"])
    for arguments, says in (
        (["25"], "live ones of steps 10, 20, 30"),
        (["--all", "10"], "not both"),
        (["--read-data=0%"], "5%"),
    ):
        with pytest.raises(ConfigError, match=says):
            verify(root, *arguments)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_every_object_of_a_checkpoint_is_looked_at(root: Path, damage: Callable[[Path], None]) -> None:
    whole = files(root)
    mine = [path for path in whole if "1-1.20.0" in str(path)]
    mine += [path for path in whole if path.parent.name == "manifest" and b"1-1.20.0" in path.read_bytes()]
    assert len(mine) > 4
    for path in mine:
        key = str(path.relative_to(root))
        damage(path)
        code, report = verify(root, "20", "--read-data")
        assert (code, found(report)) == (1, {key})
        without_data = verify(root, "20")[1]
        assert found(without_data) == (set() if damage is flip and path.suffix == ".seg" else {key})
        assert verify(root, "30", "--read-data")[0] == 0
        path.write_bytes(whole[path])


def test_a_bad_layout_does_not_hide_a_bad_index(root: Path) -> None:
    for path in [*root.rglob("layout/**/*"), *root.rglob("*.idx")]:
        if path.is_file():
            flip(path)
    report = verify(root)[1]
    assert {key.split("/")[1] for key in found(report)} == {"layout", "data"}


@pytest.mark.parametrize(("seq", "damage"), [(0, flip), (1, flip), (1, Path.unlink)])
def test_a_damaged_log(root: Path, seq: int, damage: Callable[[Path], None]) -> None:
    path = root / JOB / "log" / f"{seq:020d}"
    damage(path)
    code, report = verify(root)
    assert code == 1 and str(path.relative_to(root)) in found(report) and not report["log"]["whole"]
    assert all(not checkpoint["bad"] for checkpoint in report["checkpoints"])


def test_a_sample_is_seeded_and_finds_what_it_meets(root: Path) -> None:
    for path in root.rglob("data/1-1.30.0/*.seg"):
        flip(path)
    counts = set()
    for seed in range(6):
        _, report = verify(root, "--read-data=30%", "--seed", str(seed))
        assert verify(root, "--read-data=30%", "--seed", str(seed))[1] == report
        assert 1 <= report["checkpoints"][0]["read_frames"] < report["checkpoints"][0]["frames"]
        counts.add(frozenset(found(report)))
    assert len(counts) > 1 and any(counts)


def test_the_words_for_people(root: Path) -> None:
    segment = next(root.rglob("data/1-1.30.0/*.seg"))
    segment.unlink()
    done = CliRunner().invoke(app, ["verify", "--store", str(root), "--job", JOB, "--all"], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert f"BAD {segment.relative_to(root)}: is missing" in done.stdout
    assert "records 0 to 3 whole" in done.stdout and "1 BAD" in done.stdout and "Nothing was changed" in done.stdout


def test_an_unreachable_store_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"endpoint_url": f"http://127.0.0.1:{free_port()}", "key": "k", "secret": "s"}
    monkeypatch.setenv("CKPTD_STORE__STORAGE_OPTIONS", json.dumps(options))
    monkeypatch.setattr(verify_command, "reading_store", lambda settings: require_store(settings))
    monkeypatch.setattr(verify_command, "CommitLog", lambda store, job: CommitLog(store, job, Patience(deadline_seconds=0)))
    done = CliRunner().invoke(app, ["verify", "--store", "s3://bucket/x", "--job", JOB])
    assert isinstance(done.exception, UnavailableError) and "BAD" not in done.output
