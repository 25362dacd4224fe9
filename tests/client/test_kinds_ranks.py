"""Three real ranks with what only several ranks have: blocks dealt over them, FSDP1, process groups, offloaded models."""

from __future__ import annotations

from pathlib import Path

from tests.client import kinds_world
from tests.client.fake_daemon import FakeDaemon
from tests.warm import together


def test_kinds_that_only_several_ranks_have(tmp_path: Path) -> None:
    daemons = {job: FakeDaemon(tmp_path / f"{job}.sock") for job in ("blocks", "groups")}
    try:
        together(kinds_world.main, (str(tmp_path),), 3, seconds=300.0)
    finally:
        for daemon in daemons.values():
            daemon.stop()
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
