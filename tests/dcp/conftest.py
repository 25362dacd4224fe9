"""One coordinator and one daemon for all of these tests: they differ by their steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.demo.cluster import Cluster, Plan
from tests.dcp.backends import JOB


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Job `JOB` with its coordinator, and node a."""
    directory = tmp_path_factory.mktemp("dcp")
    found = Cluster(Plan(JOB, str(directory / "store"), Path(__file__), []), directory)
    try:
        found.start_coordinator()
        found.node("a").start_daemon()
        yield found
    finally:
        found.close()
        left = [thing for node in found.nodes.values() for thing in node.left_over()]
        assert not left, left


@pytest.fixture
def daemon(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process uses node a."""
    monkeypatch.setenv("CKPTD_SOCKET", str(cluster.node("a").socket))
    return cluster
