"""A script that always crashes, under the real launcher, daemon and coordinator: it ends by itself, and says why."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.commit.catalog import Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.store.directory import DirectoryStore
from tests.launch.processes import launched, until
from tests.launch.test_ckptd_run import RUN

SCRIPT = "tests/launch/crashing.py"


@pytest.fixture(autouse=True)
def _no_memory_left(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(arena(tmp_path), ignore_errors=True)


def arena(directory: Path) -> str:
    return f"/dev/shm/ckptd-test-{directory.name}"


def environment(directory: Path) -> dict[str, str]:
    return {
        "CKPTD_SOCKET": str(directory / "s"),
        "CKPTD_STORE__URL": str(directory / "store"),
        "CKPTD_ARENA__DIRECTORY": arena(directory),
        "CKPTD_COORDINATOR__FRUITLESS_GENERATIONS": "2",
        "CKPTD_COORDINATOR__BACKOFF_SECONDS": "0.5",
        "PATH": f"{Path(RUN).parent}:/usr/bin:/bin",
    }


def test_a_script_that_crashes_at_once_ends_by_itself(tmp_path: Path) -> None:
    with launched([RUN, "--job=j", "--nproc-per-node=2", SCRIPT, "0"], **environment(tmp_path)) as run:
        run.line("THE JOB IS STOPPED")
        told = run.line("ckptd-run: the job is stopped: 2 worlds in a row failed without a new checkpoint")
        assert run.wait() == 1
        assert "exit code 1 (ValueError: the data set is empty)" in told.string
        assert "it goes on at step 0" in told.string
        until(lambda: not run.left(), "nothing is left")


def test_one_step_back_and_then_the_end(tmp_path: Path) -> None:
    """Checkpoints of steps 2 and 4 are there; from 4 on, and from 2 on, it always crashes before the next one."""
    arguments = [RUN, "--job=j", "--every=2", "--nproc-per-node=2", SCRIPT]
    with launched([*arguments, "5"], **environment(tmp_path)) as run:
        run.line("rank . restored 0")
        run.line("rank . restored 4")
        run.end()
    with launched([*arguments, "1"], **environment(tmp_path)) as run:
        run.line("rank . restored 4")
        run.line("WORK IS LOST: 2 steps are lost: going on from step 2")
        run.line("rank . restored 2")
        told = run.line("ckptd-run: the job is stopped: 4 worlds in a row")
        assert run.wait() == 1
        assert "exit code 7" in told.string and "it goes on from step 4" in told.string
    state = asyncio.run(CommitLog(DirectoryStore(tmp_path / "store"), "j").load())
    assert [(entry.step, entry.status) for entry in catalog(state)] == [(2, Status.LIVE), (4, Status.LIVE)]
