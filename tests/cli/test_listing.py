"""`ckptd ls`, `show` and `events` on a log and objects that were really written; no coordinator lives."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from typer.testing import CliRunner

from ckptd.cli.app import app
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, pin, take_office
from ckptd.errors import NotFoundError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.pipeline.write import WriteOptions
from ckptd.store.directory import DirectoryStore
from tests.restore.states import JOB, Slot, region, save


def slot(rank: int, step: int) -> Slot:
    """Half of a big matrix, a small vector of rank 0, and how far the training was."""
    mine, big = Slot(rank), np.arange(10 * 6, dtype=np.float32).reshape(10, 6)
    mine.tensor("model.big", "float32", big, *region(big.shape, 0, rank, 2))
    if rank == 0:
        mine.tensor("model.small", "int64", np.arange(3), (0,), (3,))
        body = msgpack.packb(["d", "step", step, "seed", 7, "position", 32 * step, "stream", ["t", 100, 7]])
        mine.object("ckptd.progress", body, "global")
    return mine


async def _saved(root: Path) -> None:
    """Records: 0 epoch; 1 to 3 commits of steps 10, 20, 20; then 1 retired, 3 quarantined, 2 pinned; an abort of step 30."""
    store = DirectoryStore(root)
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    parent = None
    with ThreadPoolExecutor(1) as pool:
        for n, step in ((1, 10), (1, 20), (2, 20)):
            attempt = Attempt(Snapshot(Generation(1, n), step), 0)
            nodes = [[slot(rank, step).source()] for rank in range(2)]
            _, manifest = await save(store, nodes, WriteOptions(), pool, attempt, parent)
            parent = await committer.commit(attempt, manifest)
    await committer.retire(1)
    await committer.quarantine(3, "rotten")
    await pin(log, 2, "me@host")
    await committer.abort(Attempt(Snapshot(Generation(1, 2), 30), 0))
    await store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    asyncio.run(_saved(tmp_path))
    return tmp_path


def run(root: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments, "--job", JOB, "--store", str(root)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def data(root: Path, *arguments: str, code: int = 0) -> Any:
    return json.loads(run(root, *arguments, "--json", code=code))


def test_ls(root: Path) -> None:
    some, every = data(root, "ls"), data(root, "ls", "--all")
    assert [(one["record"], one["step"], one["state"], one["newest"]) for one in some["checkpoints"]] == [
        (2, 20, "live", True),
        (3, 20, "quarantined", False),
    ]
    assert (some["retired_not_listed"], every["retired_not_listed"]) == (1, 0)
    assert [one["state"] for one in every["checkpoints"]] == ["retired", "live", "quarantined"]
    one = some["checkpoints"][0]
    assert (one["pins"], one["world_size"], one["parent"], one["generation"]) == (["me@host"], 2, 1, "1-1")
    assert one["raw_bytes"] > 10 * 6 * 4 + 3 * 8 and 0 <= one["age_seconds"] < 600
    words = run(root, "ls")
    assert "live, newest" in words and "and 1 retired one" in words


def test_show(root: Path) -> None:
    found = data(root, "show")
    assert (found["record"], found["step"], found["nodes"], found["parts"]) == (2, 20, ["n0", "n1"], 2)
    assert found["progress"] == {"step": 20, "seed": 7, "position": 640}
    assert found["by_dtype"]["float32"] == {"count": 1, "bytes": 240}
    assert found["by_dtype"]["int64"] == {"count": 1, "bytes": 24}
    assert found["largest"][0] == {"name": "model.big", "dtype": "float32", "shape": [10, 6], "bytes": 240, "regions": 2}
    assert data(root, "show", "20")["record"] == 2  # the live one of two
    assert data(root, "show", "10")["ended"] == "retired by record 4"
    assert data(root, "show", "--record", "3")["ended"] == "quarantined by record 5: rotten"
    words = run(root, "show", "--record", "2")
    assert "step 20, record 2: live, newest, pinned by me@host" in words
    assert "model.big: float32 10×6, 240 bytes in 2 regions" in words
    assert "progress: step 20, seed 7, position 640" in words


def test_show_what_is_not_there_or_damaged(root: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no commit is of step 11; .*steps=10, 20, 20"):
        run(root, "show", "11")
    manifest = data(root, "show")
    next((root / JOB / "data").glob(f"{manifest['attempt']}/*.idx")).unlink()
    found = data(root, "show", code=4)
    assert "index" in found["damage"] and found["step"] == 20
    assert "DAMAGED OR GONE" in run(root, "show", code=4)


def test_events_out_of_the_log(root: Path) -> None:
    lines = [json.loads(line) for line in run(root, "events", "--json").splitlines()]
    assert [line["kind"] for line in lines] == [
        *("away", "office", "committed", "committed", "committed"),
        *("retired", "quarantined", "pinned", "aborted"),
    ]
    assert lines[0]["text"] == "no coordinator has announced itself; from the commit log"
    assert lines[6]["text"] == "record 3: rotten (record 5)"
    assert "step 20 of generation 1-2" in run(root, "events")
