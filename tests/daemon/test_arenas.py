"""Shared memory that the daemon owns: never more than allowed, never a SIGBUS, nothing left over."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.daemon.arenas import ArenaHost, HostedArena
from ckptd.errors import ConfigError, ResourceError, VersionMismatchError
from ckptd.notify import Notifier
from ckptd_client.arena import PAGE, SLOTS_MAX, VERSION, Arena, Shape

MIB = 1 << 20


def host_in(directory: Path, limit_bytes: int) -> ArenaHost:
    """Without a service manager."""
    return ArenaHost(directory, limit_bytes, Notifier(None))


def make(host: ArenaHost, slots: int, slot_bytes: int) -> HostedArena:
    """An arena without objects."""
    return host.create(slots, slot_bytes, 0, b"whose it is")


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"lock"}


def test_an_arena_lives_as_long_as_it_is_held(tmp_path: Path) -> None:
    host = host_in(tmp_path / "arena", 8 * MIB)
    hosted = make(host, 2, MIB)
    client = Arena(hosted.fd)
    assert (client.shape, client.description) == (Shape(2, MIB, 0, 11), b"whose it is")
    assert hosted.size_bytes == client.shape.total_bytes
    hosted.arena.slot(1)[:3] = b"abc"
    assert bytes(client.slot(1)[:3]) == b"abc"
    hosted.hold()
    hosted.drop()
    assert len(files(tmp_path / "arena")) == 1
    hosted.drop()
    assert files(tmp_path / "arena") == set()
    assert bytes(client.slot(1)[:3]) == b"abc"  # who still maps it keeps its pages
    host.close(remove=True)


async def test_the_limit_holds_for_arenas_and_rings_together(tmp_path: Path) -> None:
    host = host_in(tmp_path / "arena", 4 * MIB)
    hosted = make(host, 1, 2 * MIB)
    with pytest.raises(ResourceError, match=r"exceed arena\.limit_bytes; raise it, or use fewer slots"):
        make(host, 1, 2 * MIB)
    async with host.ring(1, MIB) as memory:
        assert memory.buffer(0).nbytes == MIB
        with pytest.raises(ResourceError):
            make(host, 1, MIB)
    with pytest.raises(ResourceError):
        async with host.ring(2, MIB):
            pass
    hosted.drop()
    make(host, 1, 3 * MIB).drop()  # freed memory counts no more
    assert files(tmp_path / "arena") == set()
    host.close(remove=True)


@pytest.mark.parametrize(("slots", "slot_bytes"), [(0, PAGE), (SLOTS_MAX + 1, PAGE), (1, 0), (1, -PAGE), (1, PAGE + 1)])
def test_impossible_shapes(tmp_path: Path, slots: int, slot_bytes: int) -> None:
    host = host_in(tmp_path / "arena", 8 * MIB)
    with pytest.raises(ResourceError, match="can't have this shape"):
        make(host, slots, slot_bytes)
    assert files(tmp_path / "arena") == set()
    host.close(remove=True)


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
    host = host_in(small_tmpfs / "arena", 1 << 40)
    hosted = make(host, 1, 40 * MIB)
    for _ in range(2):  # the refused one leaves nothing behind
        with pytest.raises(ResourceError, match=r"no room for .* make the tmpfs larger"):
            make(host, 1, 40 * MIB)
    assert len(files(small_tmpfs / "arena")) == 1
    hosted.drop()
    del hosted  # its pages go with its mapping
    make(host, 1, 40 * MIB).drop()
    host.close(remove=True)


async def test_a_ring_for_which_there_is_no_room_is_refused_before_anything_is_restored(small_tmpfs: Path) -> None:
    host = host_in(small_tmpfs / "arena", 1 << 40)
    hosted = make(host, 1, 40 * MIB)
    with pytest.raises(ResourceError, match=r"no room for .* make the tmpfs larger"):
        async with host.ring(10, 4 * MIB):
            pass
    hosted.drop()
    assert host.used_bytes == 0 and files(small_tmpfs / "arena") == set()
    host.close(remove=True)


async def test_a_ring_takes_what_its_buffers_need_and_a_full_tmpfs_is_an_error_then(small_tmpfs: Path) -> None:
    host = host_in(small_tmpfs / "arena", 1 << 40)
    async with host.ring(10, 4 * MIB) as memory:
        for index in range(2):
            memory.allocate(index)
            memory.buffer(index)[:3] = b"abc"
        assert os.fstat(memory.fd).st_blocks * 512 == 2 * 4 * MIB
        (small_tmpfs / "another's").write_bytes(b"x" * (52 * MIB))
        memory.allocate(2)  # it is the last one
        with pytest.raises(ResourceError, match="no room"):
            for index in range(3, 10):
                memory.allocate(index)
        assert bytes(memory.buffer(1)[:3]) == b"abc"
    host.close(remove=True)


async def test_an_unlimited_tmpfs_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_in(tmp_path / "arena", 1 << 40)
    real = os.statvfs(tmp_path)
    unlimited = os.statvfs_result((real.f_bsize, real.f_frsize, 0, 0, 0, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: unlimited)
    async with host.ring(1, MIB) as memory:
        memory.allocate(0)
    host.close(remove=True)


def test_a_dead_daemons_files_are_removed_and_others_left(tmp_path: Path) -> None:
    directory = tmp_path / "arena"
    directory.mkdir(mode=0o700)
    (directory / "old.arena").write_bytes(b"x" * PAGE)
    (directory / "notes").write_text("mine")
    host = host_in(directory, MIB)
    assert host.recover({}) == []
    assert files(directory) == {"notes"}
    make(host, 1, PAGE)
    host.close(remove=True)
    assert files(directory) == {"notes"}


def test_the_next_daemon_finds_what_the_last_one_left(tmp_path: Path) -> None:
    host = host_in(tmp_path / "arena", MIB)
    left = make(host, 2, 64 * PAGE)
    left.arena.slot(1)[:3] = b"abc"
    host.close(remove=False)
    newer = host_in(tmp_path / "arena", MIB)
    (found,) = newer.recover({})
    assert (found.arena.id, bytes(found.arena.slot(1)[:3])) == (left.arena.id, b"abc")
    with pytest.raises(ResourceError):
        make(newer, 2, 64 * PAGE)  # it counts
    found.drop()
    assert files(tmp_path / "arena") == set()
    make(newer, 2, 64 * PAGE)
    newer.close(remove=True)


def test_only_the_descriptor_is_left(tmp_path: Path) -> None:
    """Kept by a service manager while the directory was lost: as good as the file; of both the file counts."""
    host = host_in(tmp_path / "arena", MIB)
    lost, named = make(host, 1, PAGE), make(host, 1, PAGE)
    kept = {hosted.arena.id: os.dup(hosted.fd) for hosted in (lost, named)}
    with open("/dev/null", "rb") as nothing:
        kept["nonsense"] = os.dup(nothing.fileno())
    host.close(remove=False)
    lost._path.unlink()
    newer = host_in(tmp_path / "arena", MIB)
    found = {hosted.arena.id: hosted for hosted in newer.recover(kept)}
    assert found.keys() == {lost.arena.id, named.arena.id}
    for hosted in found.values():
        hosted.drop()
    assert files(tmp_path / "arena") == set()
    newer.close(remove=True)


def test_an_arena_of_a_newer_ckptd_is_left_alone(tmp_path: Path) -> None:
    host = host_in(tmp_path / "arena", MIB)
    left = make(host, 1, PAGE)
    os.pwrite(left.fd, struct.pack("<II", VERSION + 1, VERSION + 1), 8)
    with pytest.raises(VersionMismatchError, match=f"this ckptd reads up to {VERSION}: upgrade it"):
        Arena(left.fd)
    host.close(remove=False)
    newer = host_in(tmp_path / "arena", MIB)
    assert newer.recover({}) == []
    assert len(files(tmp_path / "arena")) == 1
    newer.close(remove=True)


def test_a_second_daemon_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    first = host_in(tmp_path / "arena", MIB)
    make(first, 1, PAGE)
    with pytest.raises(ConfigError, match="another ckptd daemon uses this"):
        host_in(tmp_path / "arena", MIB)
    assert len(files(tmp_path / "arena")) == 1
    first.close(remove=True)
    host_in(tmp_path / "arena", MIB).close(remove=True)


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "arena"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        host_in(directory, MIB)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "arena").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="mode 0700"):
        host_in(tmp_path / "arena", MIB)
