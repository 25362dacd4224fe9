"""Shared memory that the daemon owns: never more than allowed, never a SIGBUS, nothing left over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.daemon.arenas import ArenaHost
from ckptd.errors import ConfigError, ResourceError
from ckptd_client.arena import PAGE, SLOTS_MAX, Arena, arena_bytes

MIB = 1 << 20


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"lock"}


def test_an_arena_lives_as_long_as_it_is_held(tmp_path: Path) -> None:
    host = ArenaHost(tmp_path / "arena", 8 * MIB)
    hosted = host.create(2, MIB)
    assert hosted.size_bytes == arena_bytes(2, MIB)
    client = Arena(hosted.fd, 2, MIB)
    client.check_header()
    hosted.arena.slot(1)[:3] = b"abc"
    assert bytes(client.slot(1)[:3]) == b"abc"
    hosted.hold()
    hosted.drop()
    assert len(files(tmp_path / "arena")) == 1
    hosted.drop()
    assert files(tmp_path / "arena") == set()
    assert bytes(client.slot(1)[:3]) == b"abc"  # who still maps it keeps its pages
    host.close()


async def test_the_limit_holds_for_arenas_and_rings_together(tmp_path: Path) -> None:
    host = ArenaHost(tmp_path / "arena", 4 * MIB)
    hosted = host.create(1, 2 * MIB)
    with pytest.raises(ResourceError, match=r"exceed arena\.limit_bytes; raise it, or use fewer slots"):
        host.create(1, 2 * MIB)
    async with host.ring(1, MIB) as (_, memory):
        assert memory.nbytes == MIB
        with pytest.raises(ResourceError):
            host.create(1, MIB)
    with pytest.raises(ResourceError):
        async with host.ring(2, MIB):
            pass
    hosted.drop()
    host.create(1, 3 * MIB).drop()  # freed memory counts no more
    assert files(tmp_path / "arena") == set()
    host.close()


@pytest.mark.parametrize(("slots", "slot_bytes"), [(0, PAGE), (SLOTS_MAX + 1, PAGE), (1, 0), (1, -PAGE), (1, PAGE + 1)])
def test_impossible_shapes(tmp_path: Path, slots: int, slot_bytes: int) -> None:
    host = ArenaHost(tmp_path / "arena", 8 * MIB)
    with pytest.raises(ResourceError, match="can't have this shape"):
        host.create(slots, slot_bytes)
    assert files(tmp_path / "arena") == set()
    host.close()


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MiB."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "ckptd-test", str(place)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_tmpfs_is_an_error_and_not_a_sigbus(small_tmpfs: Path) -> None:
    host = ArenaHost(small_tmpfs / "arena", 1 << 40)
    hosted = host.create(1, 40 * MIB)
    for _ in range(2):  # the refused one leaves nothing behind
        with pytest.raises(ResourceError, match=r"no room for .* make the tmpfs larger"):
            host.create(1, 40 * MIB)
    assert len(files(small_tmpfs / "arena")) == 1
    hosted.drop()
    del hosted  # its pages go with its mapping
    host.create(1, 40 * MIB).drop()
    host.close()


def test_a_dead_daemons_files_are_removed_and_others_left(tmp_path: Path) -> None:
    directory = tmp_path / "arena"
    directory.mkdir(mode=0o700)
    (directory / "old.arena").write_bytes(b"x" * PAGE)
    (directory / "notes").write_text("mine")
    host = ArenaHost(directory, MIB)
    assert files(directory) == {"notes"}
    host.create(1, PAGE)
    host.close()
    assert files(directory) == {"notes"}


def test_a_second_daemon_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    first = ArenaHost(tmp_path / "arena", MIB)
    first.create(1, PAGE)
    with pytest.raises(ConfigError, match="another ckptd daemon uses this"):
        ArenaHost(tmp_path / "arena", MIB)
    assert len(files(tmp_path / "arena")) == 1
    first.close()
    ArenaHost(tmp_path / "arena", MIB).close()


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "arena"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        ArenaHost(directory, MIB)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "arena").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="mode 0700"):
        ArenaHost(tmp_path / "arena", MIB)
