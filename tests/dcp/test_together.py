"""The contract in a real gloo world of four, and what ckptd does better than the file system; some of that takes six."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.demo.cluster import Cluster
from ckptd.demo.process import Process
from tests.dcp.world import names
from tests.e2e.harness import free_port

SECONDS = 240.0


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Where a world of so many ranks has left its reports. It runs once. A flow that fails ends it; the tests of those after
    that one say so.
    """
    known: dict[int, Path] = {}

    def of(size: int) -> Path:
        if size not in known:
            known[size] = tmp_path_factory.mktemp(f"world{size}")
            _run(cluster, size, known[size])
        return known[size]

    return of


def _run(cluster: Cluster, size: int, directory: Path) -> None:
    command = [sys.executable, "-m", "tests.dcp.world", str(size), str(free_port()), str(directory)]
    environment = {**cluster.node("a").environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = Process(f"world{size}", command, environment, cluster.output)
    try:
        cluster.output.wait_for(f"the world of {size}", lambda: ranks.code is not None, SECONDS)
    finally:
        ranks.stop()


@pytest.mark.parametrize(("size", "name"), [(size, name) for size in (4, 6) for name in names(size)])
def test_in_a_world(size: int, name: str, world: Callable[[int], Path]) -> None:
    found = {}
    for rank in range(size):
        report = world(size) / f"{name}.{rank}.json"
        found[rank] = json.loads(report.read_text()) if report.exists() else ["it did not come to this"]
    assert not any(found.values()), "\n".join(f"rank {rank}: {line}" for rank, lines in found.items() for line in lines)
