"""The contract in a real gloo world of four, and what ckptd does better than the file system."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.demo.cluster import Cluster
from ckptd.demo.process import Process
from tests.dcp.only_ours import OURS
from tests.dcp.together import FLOWS, SIZE
from tests.e2e.harness import free_port

SECONDS = 240.0


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All flows, run once by four processes. A flow that fails ends the world; the tests of those after it say so."""
    directory = tmp_path_factory.mktemp("world")
    node, port = cluster.node("a"), free_port()
    ranks = [
        Process(
            f"rank{rank}",
            [sys.executable, "-m", "tests.dcp.world", str(rank), str(port), str(directory)],
            {**node.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            cluster.output,
        )
        for rank in range(SIZE)
    ]
    try:
        cluster.output.wait_for("the world of four", lambda: all(rank.code is not None for rank in ranks), SECONDS)
    finally:
        for rank in ranks:
            rank.stop()
    yield directory


@pytest.mark.parametrize("name", [flow.__name__ for flow in (*FLOWS, *OURS)])
def test_in_a_world_of_four(name: str, world: Path) -> None:
    found = {}
    for rank in range(SIZE):
        report = world / f"{name}.{rank}.json"
        found[rank] = json.loads(report.read_text()) if report.exists() else ["it did not come to this"]
    assert not any(found.values()), "\n".join(f"rank {rank}: {line}" for rank, lines in found.items() for line in lines)
