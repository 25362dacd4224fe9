"""The demo's comparison bites: whatever is restored wrongly ends it with 1, and it says what.

The whole demo runs, with a smaller model. Nothing in ckptd knows of this: what is sabotaged is replaced from outside, by the
training script (--script) or by the executable that the demo starts its daemons with (CKPTD_EXECUTABLE).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WRONG_LOSS = r"NOT AS PROMISED: step (\d+) in a world of 1 had loss (\d+\.\d+), undisturbed (\d+\.\d+)"
TOLERANCE = 1e-4


def demo(directory: Path, script: str = "small_gpt.py", executable: str = "") -> subprocess.CompletedProcess[str]:
    """`ckptd demo`, without the node's return: that makes it shorter, and the comparison is the same."""
    environment = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    if executable:
        environment["CKPTD_EXECUTABLE"] = shlex.join([sys.executable, str(HERE / "sabotaged_ckptd.py"), executable])
    command = [str(Path(sys.executable).with_name("ckptd")), "demo", "--steps", "24", "--every", "4", "--no-rejoin"]
    command += ["--nodes", "2", "--pace", "0"]
    command += ["--script", str(HERE / script)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def first_wrong_step(done: subprocess.CompletedProcess[str]) -> tuple[int, float]:
    """The first step with another loss, and by how much."""
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = [(int(step), abs(float(loss) - float(right))) for step, loss, right in re.findall(WRONG_LOSS, done.stdout)]
    assert wrong, done.stdout
    return wrong[0]


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sockets lie in it, and the path of a socket has room for about 100 bytes."""
    return tmp_path_factory.mktemp("d")


def restored_step(done: subprocess.CompletedProcess[str]) -> int:
    match = re.search(r"one node trains on from step (\d+)", done.stdout)
    assert match, done.stdout + done.stderr
    return int(match[1])


def test_undisturbed(short_path: Path) -> None:
    done = demo(short_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 24 steps have the loss of the undisturbed run" in done.stdout
    assert "NOT AS PROMISED" not in done.stdout


def test_optimizer_state_dropped(short_path: Path) -> None:
    done = demo(short_path, script="sabotage_optimizer.py")
    step, difference = first_wrong_step(done)
    # The first loss comes before the first update without moments.
    assert step == restored_step(done) + 2
    assert difference > 3 * TOLERANCE


def test_sample_cursor_off_by_one_batch(short_path: Path) -> None:
    done = demo(short_path, script="sabotage_cursor.py")
    step, difference = first_wrong_step(done)
    assert step == restored_step(done) + 1
    assert difference > 3 * TOLERANCE


def test_an_older_checkpoint_restored(short_path: Path) -> None:
    """Its losses are right: what it cost is told by the log."""
    done = demo(short_path, executable="older")
    assert done.returncode == 1, done.stdout + done.stderr
    told = re.search(r"NOT AS PROMISED: a world of 1 went on after step (\d+), the newest committed was (\d+)", done.stdout)
    assert told, done.stdout
    assert int(told[1]) + 4 == int(told[2])
    assert not re.search(WRONG_LOSS, done.stdout)


def test_a_shard_swapped(short_path: Path) -> None:
    done = demo(short_path, executable="shard")
    step, difference = first_wrong_step(done)
    assert step == restored_step(done) + 1
    assert difference > 3 * TOLERANCE
