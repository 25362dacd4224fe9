"""Exports of what dcp.save has stored through CkptdWriter: the same as of the same state saved otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ckptd.demo.cluster import Cluster, Plan
from ckptd_client.dcp import CkptdWriter
from tests.interchange.cli import ckptd
from tests.interchange.saved import JOB, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A coordinator and a daemon, which this process uses."""
    found = Cluster(Plan(JOB, str(tmp_path / "store"), Path(__file__), []), tmp_path)
    try:
        found.start_coordinator()
        found.node("a").start_daemon()
        monkeypatch.setenv("CKPTD_SOCKET", str(found.node("a").socket))
        yield found
    finally:
        found.close()


def state() -> dict[str, Any]:
    """Nested, with values of all plain kinds, an empty tensor and a long text."""
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    entries = {"betas": (0.9, 0.99), "none": None, "text": "x" * 5000, "raw": b"\0\1", "big": 1 << 70}
    kinds = [torch.ones(2, dtype=torch.bfloat16), torch.empty(0, 4), torch.tensor(7)]
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 12, "extra": {**entries, "kinds": kinds}}


def test_all_formats(cluster: Cluster, tmp_path: Path) -> None:
    saved = state()
    dcp.save(dict(saved), storage_writer=CkptdWriter(JOB, step=3), no_dist=True)
    dcp.save(dict(saved), checkpoint_id=tmp_path / "theirs", no_dist=True)
    where = ("--job", JOB, "--store", tmp_path / "store")
    ckptd("import", tmp_path / "theirs", "--job", "other", "--store", tmp_path / "store")
    ckptd("export", 0, "--job", "other", "--store", tmp_path / "store", "--format", "torch", "-o", tmp_path / "theirs.pt")
    ckptd("export", 3, *where, "--format", "torch", "-o", tmp_path / "ours.pt")
    ours, theirs = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("ours", "theirs"))
    same(_sorted(theirs), _sorted(ours))
    same(dict(saved["model"]), ours["model"])
    ckptd("export", 3, *where, "--format", "dcp", "-o", tmp_path / "ours")
    into = state()
    dcp.load(into, checkpoint_id=tmp_path / "ours", no_dist=True)
    same(saved, into)
    ckptd("export", 3, *where, "--format", "safetensors", "-o", tmp_path / "weights")
    same(_sorted(dict(saved["model"])), _sorted(load_file(tmp_path / "weights" / "model.safetensors")))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def test_without_collectives(cluster: Cluster, tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(3)}, storage_writer=CkptdWriter(JOB, step=4), no_dist=True, use_collectives=False)
    where = ("--job", JOB, "--store", tmp_path / "store")
    said = ckptd("export", 4, *where, "--format", "torch", "-o", tmp_path / "out.pt", code=1).stderr
    assert "use_collectives=False" in said and "dcp.load it on 1 rank with CkptdReader" in said
    assert not list(tmp_path.glob("*out.pt*"))


class Odd:
    """What torch.save pickles by name."""


def test_values_that_would_need_pickle(cluster: Cluster, tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(3), "odd": Odd()}, storage_writer=CkptdWriter(JOB, step=5), no_dist=True)
    where = ("--job", JOB, "--store", tmp_path / "store")
    said = ckptd("export", 5, *where, "--format", "torch", "-o", tmp_path / "out.pt", code=1).stderr
    assert "'odd'" in said and "tests.interchange.test_saved_by_dcp.Odd" in said
