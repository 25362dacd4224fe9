"""`ckptd cat`, `diff` and `show` on checkpoints that were really written; what they read is counted at the store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ckptd.cli import cat, diff, reshard, show
from ckptd.cli.app import app
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.errors import CkptdError, ConfigError, MissingStateError, NotFoundError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.pipeline.write import WriteOptions
from ckptd.store.directory import DirectoryStore
from tests.restore.states import JOB, CountingStore, Slot, region, save

FRAME = 4096
BIG = np.random.default_rng(1).standard_normal((96, 64)).astype(np.float32)  # 24 KiB: 6 frames as one, more as shards
State = dict[str, tuple[str, np.ndarray]]


def state(**changes: np.ndarray) -> State:
    big = changes.get("big", BIG)
    return {
        "model.big": ("float32", big),
        "model.half": ("bfloat16", (BIG[:8].copy().view(np.uint32) >> 16).astype(np.uint16)),
        "model.step": ("int64", changes.get("step", np.array(7))),
        "model.empty": ("float32", np.zeros((0, 3), np.float32)),
        "model.odd": ("float32", changes.get("odd", np.array([1.0, np.nan, np.inf, -3.0, 0.0], np.float32))),
    }


def slots(of: State, dim: int, world: int) -> list[Slot]:
    found = [Slot(rank) for rank in range(world)]
    for fqn, (dtype, whole) in of.items():
        for slot in found if whole.ndim == 2 else found[:1]:
            cut = region(whole.shape, dim, slot.rank, world) if whole.ndim == 2 else ((0,) * whole.ndim, whole.shape)
            slot.tensor(fqn, dtype, whole, *cut)
    for slot in found:
        slot.tensor("rng", "uint8", np.arange(3, dtype=np.uint8) + slot.rank, (0,), (3,), "rank")
    found[0].object("scheduler", b"x" * 20, "global")
    return found


async def _save(root: Path, states: Sequence[tuple[State, int, int]]) -> None:
    """Steps 1, 2, …, each (state, dimension that is cut, ranks)."""
    store, parent = DirectoryStore(root), None
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    with ThreadPoolExecutor(1) as pool:
        for step, (of, dim, world) in enumerate(states, 1):
            attempt = Attempt(Snapshot(Generation(1, 1), step), 0)
            options = WriteOptions(frame_bytes=FRAME, segment_bytes=4 * FRAME, codec="raw")
            nodes = [[slot.source()] for slot in slots(of, dim, world)]
            _, manifest = await save(store, nodes, options, pool, attempt, parent)
            parent = await committer.commit(attempt, manifest)
    await store.close()


@dataclass
class Place:
    root: Path
    monkeypatch: pytest.MonkeyPatch

    def save(self, *states: tuple[State, int, int]) -> None:
        asyncio.run(_save(self.root, states))

    def run(self, *arguments: str) -> tuple[str, CountingStore]:
        """(its output, the store that it read)."""
        store = CountingStore(self.root)
        for module in (cat, diff, reshard, show):
            self.monkeypatch.setattr(module, "reading_store", lambda _: store)
        done = CliRunner().invoke(app, [*arguments, "--job", JOB, "--store", str(self.root)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout, store

    def data(self, *arguments: str) -> tuple[Any, CountingStore]:
        said, store = self.run(*arguments, "--json")
        return json.loads(said), store

    def refused(self, kind: type[CkptdError], match: str, *arguments: str) -> None:
        with pytest.raises(kind, match=match):
            self.run(*arguments)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize(("dim", "world"), [(0, 1), (0, 3), (1, 4)])
def test_figures_of_a_tensor_whatever_its_layout(place: Place, dim: int, world: int) -> None:
    place.save((state(), dim, world))
    found, store = place.data("cat", "1", "model.big")
    assert (found["name"], found["dtype"], found["shape"], found["count"]) == ("model.big", "float32", [96, 64], BIG.size)
    wide = BIG.astype(np.float64)
    assert (found["min"], found["max"]) == (BIG.min(), BIG.max())
    assert found["mean"] == pytest.approx(wide.mean()) and found["std"] == pytest.approx(wide.std())
    assert store.read_bytes(".seg") == BIG.nbytes  # its frames, each once
    description = [end - start for key, start, end in store.gets if "/layout/" in key or "/manifest/" in key or ".idx" in key]
    assert found["read_bytes"] == BIG.nbytes + sum(description)
    assert found["all_bytes"] > BIG.nbytes


def test_figures_of_what_is_not_finite(place: Place) -> None:
    place.save((state(), 0, 2))
    found, _ = place.data("cat", "1", "model.odd")
    assert [found[key] for key in ("count", "min", "max", "nan", "infinite", "zeros")] == [5, -3, 1, 1, 1, 1]
    assert found["mean"] == pytest.approx(-2 / 3)
    empty, _ = place.data("cat", "1", "model.empty")
    assert (empty["count"], empty["min"], empty["mean"], empty["std"]) == (0, None, None, None)
    half, _ = place.data("cat", "@1", "model.half")
    assert half["max"] == pytest.approx(BIG[:8].max(), rel=0.01)
    said, _ = place.run("cat", "1", "model.odd")
    assert "model.odd: float32 5, step 1, record 1" in said and "infinite" in said and "read " in said
    assert place.data("cat", "1", "rng", "--rank", "1")[0]["max"] == 3


@pytest.mark.parametrize("dim", [0, 1])
def test_a_slice_reads_the_frames_that_hold_it(place: Place, dim: int) -> None:
    place.save((state(), dim, 2))
    found, store = place.data("cat", "1", "model.big", "--slice", "0:2,:4")
    assert found["values"] == BIG[0:2, :4].tolist()
    assert store.read_bytes(".seg") == FRAME
    assert place.data("cat", "1", "model.big", "--slice", "-1")[0]["values"] == BIG[-1].tolist()
    assert place.data("cat", "1", "model.big", "--slice", "95,-2")[0]["values"] == float(BIG[95, 62])
    assert place.data("cat", "1", "model.big", "--slice", "5:3")[0]["values"] == []
    assert place.data("cat", "1", "model.odd", "--slice", ":3")[0]["values"] == [1.0, "nan", "inf"]
    assert place.data("cat", "1", "model.step", "--slice", "")[0]["values"] == 7
    said, _ = place.run("cat", "1", "model.odd", "--slice", "3:")
    assert "[-3.  0.]" in said


def test_bad_input(place: Place) -> None:
    place.save((state(), 0, 2))
    refused: Callable[..., None] = place.refused
    refused(NotFoundError, r"no commit is of step 9; .*steps=1", "cat", "9", "model.big")
    refused(NotFoundError, "no commit has record 9", "diff", "1", "@9")
    refused(ConfigError, "say a step, as in 100, or a record", "cat", "newest", "model.big")
    refused(MissingStateError, r"no tensor 'model.bgi'; did you mean model.big", "cat", "1", "model.bgi")
    refused(MissingStateError, r"did you mean model.big\?", "cat", "1", "BIG")
    refused(MissingStateError, r"say whose with --rank ranks=\[0, 1\]", "cat", "1", "rng")
    refused(ConfigError, "is an object, not a tensor", "cat", "1", "scheduler")
    refused(ConfigError, "has 3 dimensions, the tensor has 2", "cat", "1", "model.big", "--slice", "1,2,3")
    refused(ConfigError, "neither an index nor from:to", "cat", "1", "model.big", "--slice", "::2")
    refused(ConfigError, "index 96 is outside of dimension 0", "cat", "1", "model.big", "--slice", "96")
    large = (state(big=np.zeros((200, 64), np.float32)), 0, 1)
    place.root /= "large"
    place.save(large)
    refused(ConfigError, "has 12800 values; at most 10000", "cat", "1", "model.big", "--slice", ":")


def test_bad_input_is_one_line_and_an_exit_code(place: Place) -> None:
    place.save((state(), 0, 2))
    command = [str(Path(sys.executable).with_name("ckptd")), "cat", "1", "model.bgi", "--job", JOB, "--store", str(place.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ckptd: the checkpoint has no tensor 'model.bgi'; did you mean model.big")


def test_nothing_is_read_of_what_is_equal(place: Place) -> None:
    place.save((state(), 0, 2), (state(), 0, 2))
    found, store = place.data("diff", "1", "2")
    assert (found["different"], found["only_a"], found["only_b"]) == ([], [], [])
    assert found["equal"] == 8  # five tensors, an object, and one of each rank
    assert store.read_bytes(".seg") == 0


def test_only_frames_that_differ_are_read(place: Place) -> None:
    big = BIG.copy()
    big[3, 5] += 0.5
    big[95, 63] = np.nan
    place.save((state(), 0, 2), (state(big=big, step=np.array(8)), 0, 2))
    found, store = place.data("diff", "1", "2")
    changed = {one["name"]: one for one in found["different"]}
    assert set(changed) == {"model.big", "model.step"} and found["equal"] == 6
    one = changed["model.big"]
    assert (one["changed"], one["not_finite"], one["compared"]) == (2, 1, 2 * FRAME // 4)
    assert one["max_abs"] == float(big[3, 5]) - float(BIG[3, 5])
    seen = np.concatenate([BIG[:16].ravel(), BIG[80:].ravel()]).astype(np.float64)
    assert one["relative_l2"] == pytest.approx(one["max_abs"] / np.linalg.norm(seen))
    assert (changed["model.step"]["changed"], "max_abs" in changed["model.step"]) == (1, False)
    assert store.read_bytes(".seg") == 2 * (2 * FRAME + 8)
    assert found["a"]["read_bytes"] + found["b"]["read_bytes"] < found["a"]["all_bytes"] + found["b"]["all_bytes"]
    said, _ = place.run("diff", "1", "2")
    assert "6 equal, 2 differ" in said and "model.big" in said and "read " in said


def test_layouts_may_differ(place: Place) -> None:
    """Rows of two ranks beside columns of three: regions, frames and their offsets are all different ones."""
    big, chance = BIG.copy(), np.random.default_rng(2)
    touched = chance.random(BIG.shape) < 0.01
    big[touched] *= 1.5
    place.save((state(), 0, 2), (state(big=big), 1, 3), (state(), 1, 3))
    found, store = place.data("diff", "1", "2")
    [one] = [one for one in found["different"] if one["name"] == "model.big"]
    assert (one["changed"], one["compared"]) == (int(touched.sum()), BIG.size)
    apart = big.astype(np.float64) - BIG
    assert one["max_abs"] == np.abs(apart).max()
    assert one["relative_l2"] == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(BIG.astype(np.float64)))
    assert found["only_b"] == [{"name": "rng", "rank": 2}] and found["only_a"] == []
    assert store.read_bytes(".seg") <= 2 * (BIG.nbytes + 8 * 64 * 2)  # each frame of either once
    same, _ = place.data("diff", "1", "3")
    assert same["different"] == []
    assert "1 of them not shown" not in place.run("diff", "1", "2")[0]


def test_what_can_not_be_compared(place: Place) -> None:
    place.save((state(), 0, 1), (state(odd=np.zeros(4, np.float32)), 0, 1))
    found, _ = place.data("diff", "1", "2")
    assert [(one["name"], one["unlike"]) for one in found["different"]] == [("model.odd", "float32[5] and float32[4]")]
    assert "unlike: float32[5] and float32[4]" in place.run("diff", "1", "2")[0]


def test_show_lists_tensors_and_how_they_are_cut(place: Place) -> None:
    place.save((state(), 1, 2))
    found, store = place.data("show", "1", "--tensors", "model.*")
    tensors = {one["name"]: one for one in found["tensors"]}
    assert len(tensors) == 5
    big = tensors["model.big"]
    assert (big["cut"], big["raw_bytes"], big["stored_bytes"], big["codecs"]) == (
        "2 along dim 1",
        BIG.nbytes,
        BIG.nbytes,
        ["raw"],
    )
    assert big["nodes"] == ["n0", "n1"] and big["regions"][1]["offsets"] == [0, 32]
    assert tensors["model.empty"]["cut"] == "empty" and tensors["model.step"]["cut"] == "whole"
    assert [(one["node"], one["regions"]) for one in found["writers"]] == [("n0", 6), ("n1", 3)]
    assert found["codecs"][0]["name"] == "raw"
    assert found["codecs"][0]["stored_bytes"] == sum(one["stored_bytes"] for one in found["writers"])
    assert store.read_bytes(".seg") == 20 and found["read_bytes"] < found["all_bytes"]
    said, _ = place.run("show", "1", "--tensors", "*big")
    assert "2 along dim 1" in said and "model.half" not in said and "by n1: 3 regions" in said


def test_reshard_says_what_a_load_would_read(place: Place) -> None:
    place.save((state(), 0, 4))
    found, store = place.data("reshard", "1", "--dry-run", "--world", "2", "--place", "S1", "--link-bytes-per-second", "1000")
    assert (found["world"], found["mesh"], found["placements"]) == (2, [2], ["S1"])
    for node in found["nodes"]:  # half of each row, so all frames of the matrices
        assert node["frame_bytes"] == BIG.nbytes + 8 * 64 * 2 + 8 + 5 * 4 and node["requests"] >= node["objects"] == 4
        assert node["amplification"] > 1.9 and node["shared_frames"] == 0
        assert node["seconds"] == node["fetched_bytes"] / 1000
    assert store.read_bytes(".seg") == 0
    together, _ = place.data("reshard", "1", "--dry-run", "--world", "2", "--place", "S1", "--ranks-per-node", "2")
    [node] = together["nodes"]
    assert node["amplification"] == 1.0 and node["shared_frames"] == node["frames"]
    assert together["link_bytes_per_second"] > 0 and together["seconds"] == node["seconds"]
    said, _ = place.run("reshard", "@1", "--dry-run", "--world", "2x2", "--place", "R,S0")
    assert "into 4 ranks" in said and "the slowest needs" in said
    place.refused(ConfigError, "say --dry-run", "reshard", "1", "--world", "2")
    place.refused(ConfigError, "as in 2x4; got 'many'", "reshard", "1", "--dry-run", "--world", "many")
    place.refused(ConfigError, "needs as many placements", "reshard", "1", "--dry-run", "--world", "2x2", "--place", "S0")
