"""Logs are lines that a machine can read, and tell no secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from ckptd.observe import setup_logging


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_go_to_stderr_with_what_was_bound(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("json", "info", part="daemon")
    log = structlog.get_logger()
    log.debug("too quiet")
    log.info("segment stored", key="job/data/1", size_bytes=5)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    found = json.loads(line)
    found.pop("timestamp")
    expected = {"event": "segment stored", "level": "info", "part": "daemon", "key": "job/data/1", "size_bytes": 5}
    assert found == expected


@pytest.mark.parametrize("style", ["json", "console"])
def test_fields_that_are_secret_by_name_are_blanked(capsys: pytest.CaptureFixture[str], style: str) -> None:
    setup_logging(style)  # type: ignore[arg-type]
    names = ["secret", "aws_secret_access_key", "token", "password", "Authorization", "storage_options", "access_key"]
    structlog.get_logger().info("x", **dict.fromkeys(names, "hunter2"), key="kept")
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert "kept" in err


def test_tracebacks_show_no_local_values(capsys: pytest.CaptureFixture[str]) -> None:
    for style in ("json", "console"):
        setup_logging(style)  # type: ignore[arg-type]
        try:
            innocent = "".join(["hun", "ter2"])
            raise RuntimeError(len(innocent))
        except RuntimeError:
            structlog.get_logger().exception("failed")
    err = capsys.readouterr().err
    assert err.count("RuntimeError: 7") == 2
    assert "hunter2" not in err


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        setup_logging(level="loud")
