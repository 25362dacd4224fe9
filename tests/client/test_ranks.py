"""Three real ranks: FSDP2 on 3, on 2, DDP, one plain process, and back, each starting bit for bit where the last one ended."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from tests.client import ranks
from tests.client.fake_daemon import FakeDaemon
from tests.warm import together


def test_any_world_loads_what_any_other_saved(daemon: FakeDaemon, tmp_path: Path) -> None:
    phases = [("fsdp", 3), ("fsdp", 2), ("ddp", 2), ("plain", 1), ("fsdp", 3)]
    env = {"CKPTD_SOCKET": str(daemon.path), "BASE_PORT": "20000", "RENDEZVOUS": str(tmp_path / "rendezvous")}
    with multiprocessing.Manager() as manager:
        together(ranks.main, (phases, env, manager.dict()), 3)
    assert [c.step for c in daemon.checkpoints] == [2, 4, 6, 8, 10]
    assert daemon.missed == [] and not any(daemon.reports)
    first = daemon.checkpoints[0]
    assert first.tensors["model.one.weight"] == ("float32", (7, 8))
    assert [sizes for _, sizes, _ in sorted(first.pieces["model.two.weight"])] == [(1, 7), (1, 7)]  # the third rank's is empty
    assert set(first.rank_objects) == {0, 1, 2} and "ckptd.rng" not in first.objects
    assert len(daemon.checkpoints[2].pieces["model.where"]) == 1
    stored = [[len(b) for p in c.pieces.values() for _, _, b in p] for c in (daemon.checkpoints[2], daemon.checkpoints[3])]
    assert sum(stored[0]) == sum(stored[1])
