"""The daemon's malloc uses the memory of bodies again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of 20 times 4 bodies at once, after as many to warm up. As glibc comes, each page is faulted in each time.
BODIES = """
import resource
from concurrent.futures import ThreadPoolExecutor
from ckptd.daemon.memory import keep_freed_memory
keep_freed_memory()
def receive(_):
    return [bytearray(b"x") * (16 << 20) for _ in range(4)][0][0]
with ThreadPoolExecutor(1) as pool:
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        list(pool.map(receive, range(20)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 20 * 4 * (16 << 20) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other ways")
def test_bodies_are_not_faulted_in_anew() -> None:
    done = subprocess.run([sys.executable, "-c", BODIES], capture_output=True, check=True, text=True)
    assert int(done.stdout) < PAGES / 20
