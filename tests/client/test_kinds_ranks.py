"""Three real ranks with what only several ranks have: blocks dealt over them, FSDP1, process groups, offloaded models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.client.fake_daemon import FakeDaemon

WORLD = Path(__file__).with_name("kinds_world.py")
FORKED = Path(__file__).parents[1] / "e2e" / "forked.py"


def test_kinds_that_only_several_ranks_have(tmp_path: Path) -> None:
    daemons = {job: FakeDaemon(tmp_path / f"{job}.sock") for job in ("blocks", "groups")}
    environments = [{"DIRECTORY": str(tmp_path), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(3)]
    command = [sys.executable, str(FORKED), json.dumps(environments), str(WORLD)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        for daemon in daemons.values():
            daemon.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    (blocks,), staged = (daemons[job].checkpoints for job in ("blocks", "groups"))
    assert [one.world_size for one in staged] == [3, 2, 3]
    assert {name: len(blocks.pieces[f"ckptd.state.{name}"]) for name in ("sharded", "listed", "wrapped")} == {
        "sharded": 6,
        "listed": 6,
        "wrapped": 6,
    }
    pieces = [{fqn for fqn in one.objects if fqn.startswith(("model", "optimizer"))} for one in staged]
    assert pieces == [
        {"model[0]", "model[1]", "optimizer[0]", "optimizer[1]"},
        {"model", "optimizer"},
        {"model[0]", "model[1]", "optimizer[0]", "optimizer[1]"},
    ]
    assert len(staged[0].pieces["model.front.weight"]) == 1 and len(staged[0].pieces["model.back.weight"]) == 2
