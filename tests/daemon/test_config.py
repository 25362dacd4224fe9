"""Settings: what wins over what, and what is said about impossible ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckptd.config import load_settings
from ckptd.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CKPTD_CONFIG", "CKPTD_STORE__URL", "CKPTD_DAEMON__CPU_THREADS"):
        monkeypatch.delenv(name, raising=False)


def written(directory: Path, text: str) -> Path:
    file = directory / "settings.toml"
    file.write_text(text)
    return file


def test_the_command_line_over_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[store]\nurl = "/a"\n[daemon]\ncpu_threads = 3\nnode = "n"\n')
    assert load_settings(file, {}).store.url == "/a"
    monkeypatch.setenv("CKPTD_STORE__URL", "/b")
    monkeypatch.setenv("CKPTD_DAEMON__CPU_THREADS", "5")
    settings = load_settings(file, {"store": {"url": "/c"}, "daemon": {"node": None}})
    assert (settings.store.url, settings.daemon.cpu_threads, settings.daemon.node) == ("/c", 5, "n")


def test_the_file_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_CONFIG", str(written(tmp_path, '[store]\nurl = "/a"\n')))
    assert load_settings(None, {}).store.url == "/a"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[daemon]\n# why\nframe_byte = 1\n",
            ["settings.toml:3: daemon.frame_byte: there is no such setting", "keys of [daemon]: socket"],
        ),
        (
            "[daemon]\nframe_bytes = 1\n",
            ["settings.toml:2: daemon.frame_bytes", "greater than or equal to 4096", "size of a frame"],
        ),
        ("[coordinator]\nevery_steps = 'x'\n", ["settings.toml:2: coordinator.every_steps", "valid integer"]),
        ("[coordinator]\nlease_seconds = 0\n", ["settings.toml:2: coordinator.lease_seconds", "greater than 0"]),
        ("[strore]\n", ["settings.toml:1: strore", "sections: store, arena, daemon, coordinator"]),
        ("url = 's3://b'\n", ["settings.toml:1: url", "sections: store"]),
        ("[store\n", ["can't read the settings in", "line 1"]),
    ],
)
def test_impossible_settings(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(written(tmp_path, text), {})
    for part in told:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cpu_threads.*every_steps"):
        load_settings(written(tmp_path, "[daemon]\ncpu_threads = 0\n[coordinator]\nevery_steps = 0\n"), {})


def test_values_are_never_repeated(tmp_path: Path) -> None:
    text = '[store]\nstorage_options = "hunter2"\n'
    with pytest.raises(ConfigError) as caught:
        load_settings(written(tmp_path, text), {})
    assert "hunter2" not in str(caught.value)


def test_from_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every_steps"):
        load_settings(None, {"coordinator": {"every_steps": 0}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[daemon]\ncpu_threads = "many"\n', ":2: daemon.cpu_threads: Input should be a valid integer"),
        (
            "[arena]\n[daemon]\n\ncpu_thread = 1\n",
            ":4: daemon.cpu_thread: there is no such setting (keys of [daemon]: socket, ",
        ),
        ("daemon = 5\n", ":1: daemon: this is a section; write [daemon] and its keys below"),
        ("# x\ndaemon.cpu_threads = 0\n", ":2: daemon.cpu_threads: Input should be greater than or equal to 1"),
        ("daemon = { node = 'a', cpu_threads = 0 }\n", ":1: daemon.cpu_threads: Input should be greater than"),
        ("[demon]\n", ":1: demon: there is no such setting (sections: store, arena, daemon, coordinator"),
        ("[daemon]\nnode = 'a'\nnode = 'b'\n", "line 3"),
    ],
)
def test_a_mistake_in_the_file_is_found(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        load_settings(file, {})
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CKPTD_DAEMON__CPU_THREADS", "many", "environment variable CKPTD_DAEMON__CPU_THREADS: daemon.cpu_threads: Input"),
        ("CKPTD_DAEMON__CPU_THREAD", "4", "environment variable CKPTD_DAEMON__CPU_THREAD: daemon.cpu_thread: there is no such"),
        (
            "CKPTD_DEMON__CPU_THREADS",
            "4",
            "environment variable CKPTD_DEMON__CPU_THREADS: there is no such section (sections: ",
        ),
        ("CKPTD_STORE__STORAGE_OPTIONS", "{hunter2", "environment variable CKPTD_STORE__STORAGE_OPTIONS: write it as JSON"),
    ],
)
def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[daemon]\ncpu_threads = 4\n")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        load_settings(file, {})
    assert str(file) not in str(raised.value) and "hunter2" not in str(raised.value)


def test_a_mistake_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[coordinator]\nevery_steps = 4\n")
    with pytest.raises(ConfigError, match=r"command line: coordinator\.every_steps: .* \(a snapshot every so many steps\)"):
        load_settings(file, {"coordinator": {"every_steps": 0}})
