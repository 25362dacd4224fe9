"""Fixtures for all tests, and the rule that a skipped test must be listed, with a reason, in tests/skips.txt."""

from __future__ import annotations

import fnmatch
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.servers import azure_url, azurite, fake_gcs, gcs_url, minio, minio_url

__all__ = ["azure_url", "azurite", "fake_gcs", "gcs_url", "minio", "minio_url"]

# Its tests are inherited, and it isn't called test_*: without this a failure there doesn't say what it saw.
pytest.register_assert_rewrite("tests.store.contract")

_SKIPS = Path(__file__).with_name("skips.txt")
_unlisted: list[str] = []

settings.register_profile("ckptd", deadline=None)  # no test asserts a time: a busy machine is no counterexample
settings.load_profile("ckptd")


def pytest_configure() -> None:
    """Started in the background of a script, we ignore Ctrl-C, and so would every process that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _allowed_skips() -> list[str]:
    """Patterns of node ids. A line is 'pattern: reason'; an empty reason is an error."""
    patterns = []
    for line in _SKIPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, separator, reason = line.partition(": ")
            if not separator or not reason.strip():
                raise pytest.UsageError(f"{_SKIPS.name}: a skip needs a reason: {line}")
            patterns.append(pattern)
    return patterns


def _note_skip(nodeid: str) -> None:
    # [] is how a parametrized id looks to fnmatch's character classes: compare literally but for '*'.
    if not any(fnmatch.fnmatchcase(nodeid, pattern.replace("[", "[[]")) for pattern in _allowed_skips()):
        _unlisted.append(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _note_skip(report.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the process that leads several workers: what a worker skipped while collecting, only it has seen."""
    _unlisted.extend(set(getattr(node, "workeroutput", {}).get("unlisted", ())) - set(_unlisted))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unlisted"] = _unlisted
    if _unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid in _unlisted:
        terminalreporter.write_line(f"skipped, but not listed in tests/{_SKIPS.name}: {nodeid}", red=True)
