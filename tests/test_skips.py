"""The rule of tests/conftest.py bites: an unlisted skip fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(directory: Path, allowed: str, *options: str) -> subprocess.CompletedProcess[str]:
    tests = directory / "tests"
    tests.mkdir(exist_ok=True)
    (tests / "__init__.py").touch()
    (tests / "skips.txt").write_text(allowed)
    (tests / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text().replace("tests.servers", "pytest_nothing"))
    (directory / "pytest_nothing.py").write_text("azure_url = azurite = fake_gcs = gcs_url = minio = minio_url = None\n")
    (tests / "test_it.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "@pytest.mark.parametrize('n', [1])\n"
        "@pytest.mark.skip(reason='no device')\n"
        "def test_skipped(n): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests"]
    return subprocess.run(command, cwd=directory, env={"PYTHONPATH": "."}, capture_output=True, text=True)


def test_an_unlisted_skip_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "# nothing\n")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not listed in tests/skips.txt: tests/test_it.py::test_skipped[1]" in done.stdout


def test_a_module_skipped_by_a_worker_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_other.py").write_text("import pytest\npytest.skip('not here', allow_module_level=True)\n")
    done = run(tmp_path, "tests/test_it.py::test_skip*: needs a device\n", "-n", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not listed in tests/skips.txt: tests/test_other.py" in done.stdout


def test_a_listed_skip_is_fine(tmp_path: Path) -> None:
    for line in ("tests/test_it.py::test_skipped[1]: needs a device\n", "tests/test_it.py::test_skip*: needs a device\n"):
        done = run(tmp_path, line)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_skip_without_a_reason_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "tests/test_it.py::test_skipped[1]\n")
    assert done.returncode != 0
    assert "needs a reason" in done.stdout + done.stderr
