"""The contract, in one process: what DCP does over ckptd is what it does over the file system."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptd.demo.cluster import Cluster
from tests.dcp.alone import FLOWS
from tests.dcp.backends import Backend, differences, plain


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)
def test_same_as_files(flow: Callable[[Backend], Any], daemon: Cluster, tmp_path: Path) -> None:
    first = 1000 * (1 + zlib.crc32(flow.__name__.encode()) % 1_000_000)
    ours, files = (plain(flow(Backend(ours, tmp_path, first))) for ours in (True, False))
    assert not list(differences(ours, files))
