"""From torch.save into a running job and out again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.e2e.harness import Job
from tests.interchange.cli import ckptd
from tests.interchange.saved import same


def test_an_imported_state_is_trained_on_and_exported(tmp_path: Path) -> None:
    model = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.rand(2, 30)).sum().backward()
    optimizer.step()
    saved: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(saved, tmp_path / "in.pt")
    job = Job(tmp_path)
    ckptd("import", tmp_path / "in.pt", "--job", job.name, "--store", job.store, "--step", 40)
    with job:
        environment = {**job.node("a").environment, "CKPTD_JOB": job.name}
        words = [sys.executable, "-m", "tests.interchange.tuning"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told == {"done": 40, "epoch": 3, "lr": 0.25, "sum": float(model.weight.sum())}
        job.wait_commit(41)
    ckptd("export", 41, "--job", job.name, "--store", job.store, "--format", "torch", "-o", tmp_path / "out.pt")
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    same(dict(saved["model"]), dict(again["model"]))
    same(saved["optimizer"], again["optimizer"])
    assert again["epoch"] == 4
