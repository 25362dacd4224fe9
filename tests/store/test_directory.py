"""What only a directory can do wrong: durability, litter, file systems without links."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from ckptd.errors import StoreConfigError, StoreError, UnavailableError, UnsafeStoreError
from ckptd.store import directory
from ckptd.store.directory import DirectoryStore
from ckptd.store.open import check_store
from ckptd.store.probe import probe
from tests.store.contract import names


def failing(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


async def test_a_failed_fsync_ends_the_call_and_leaves_neither_object_nor_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("a/old", b"old")
    syncs: list[int] = []

    def fail(descriptor: int) -> None:
        syncs.append(descriptor)
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(directory.os, "fsync", fail)
    for call in (store.put("a/old", b"new"), store.create("a/new", b"new")):
        syncs.clear()
        with pytest.raises(StoreError, match="fsync failed") as caught:
            await call
        assert not isinstance(caught.value, UnavailableError)  # RetryingStore must not try it again
        assert len(syncs) == 1
    assert (tmp_path / "a" / "old").read_bytes() == b"old"
    assert os.listdir(tmp_path / "a") == ["old"]


async def test_file_then_directory_then_its_parents_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path / "root")
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(directory.os, "fsync", note)
    await store.create("job/log/0", b"x")
    root = str(tmp_path / "root")
    parents = {str(tmp_path), root, f"{root}/job"}
    temporary = [path for path in synced if ".tmp-" in path]
    assert len(temporary) == 1 and temporary[0].startswith(f"{root}/job/log/")
    assert parents <= set(synced[: synced.index(temporary[0])])  # the way there is durable before the object is
    assert synced[-1] == f"{root}/job/log"
    synced.clear()
    await store.create("job/log/1", b"x")
    assert [path for path in synced if ".tmp-" not in path] == [f"{root}/job/log"]


async def test_temporary_files_are_not_listed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("a/1", b"x")
    (tmp_path / "a" / ".tmp-0123").write_bytes(b"left by a crash")
    assert await names(store, "") == {"a/1"}
    assert await names(store, "a/") == {"a/1"}


async def test_a_directory_removed_under_us_is_made_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "root")
    await store.put("a/1", b"x")
    (tmp_path / "root" / "a" / "1").unlink()
    (tmp_path / "root" / "a").rmdir()
    await store.put("a/1", b"y")
    assert await store.get("a/1") == b"y"


@pytest.mark.parametrize("under_it", [True, False])
async def test_what_lies_under_a_lost_mount_is_no_store(tmp_path: Path, under_it: bool) -> None:
    """A commit written there would be lost with the next mount; a read there must not look like a missing object."""
    root, away = tmp_path / "root", tmp_path / "away"
    store = DirectoryStore(root)
    await store.put("a/1", b"x")
    root.rename(away)
    if under_it:
        root.mkdir()
    calls = [store.put("a/2", b"y"), store.create("a/3", b"y"), store.get("a/1"), store.info("a/1"), store.delete("a/1")]
    for call in [*calls, store.children("a/"), names(store, "")]:
        with pytest.raises(UnavailableError, match="unmounted"):
            await call
    assert not root.exists() or not os.listdir(root)
    if under_it:
        root.rmdir()
    away.rename(root)
    await store.put("a/2", b"y")
    assert await store.get("a/1") == b"x" and await names(store, "") == {"a/1", "a/2"}


async def test_a_root_made_by_another_writer_while_we_look_is_no_lost_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    store = DirectoryStore(root)
    look, made = Path.stat, threading.Event()

    def find_it_missing_and_be_overtaken(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        try:
            return look(path, follow_symlinks=follow_symlinks)
        except FileNotFoundError:
            if path == root and not made.is_set():
                made.set()
                asyncio.run(store.put("a/theirs", b"theirs"))
            raise

    monkeypatch.setattr(Path, "stat", find_it_missing_and_be_overtaken)
    await store.put("a/ours", b"ours")
    assert made.is_set() and await names(store, "") == {"a/ours", "a/theirs"}


async def test_a_file_system_without_links_is_unsafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(directory.os, "link", failing(errno.EOPNOTSUPP))
    with pytest.raises(UnsafeStoreError, match="hard links"):
        await probe(store, "")
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, UnavailableError), (errno.EDQUOT, UnavailableError), (errno.EROFS, StoreConfigError)],
)
async def test_what_a_write_error_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[StoreError]
) -> None:
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(directory.os, "write", failing(number))
    with pytest.raises(expected):
        await store.put("a", b"x")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


async def test_a_file_in_the_place_of_a_directory_is_no_conflict(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("a", b"x")
    with pytest.raises(StoreError):
        await store.create("a/b", b"x")
    await store.put("d/e", b"x")
    with pytest.raises(StoreError):
        await store.put("d", b"x")


async def test_a_place_that_can_not_be_a_directory_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreConfigError, match="ENOTDIR"):
        await check_store(DirectoryStore(tmp_path / "file" / "below"))
    with pytest.raises(StoreConfigError, match="absolute"):
        DirectoryStore(Path("relative"))


@pytest.mark.parametrize("made_again", [True, False])
async def test_a_directory_that_goes_while_it_is_looked_at_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """pathlib finds the name taken, and no directory when it looks at it; another writer's may be there just after."""
    parent = tmp_path / "job" / "data"
    parent.mkdir(parents=True)
    make, raced = Path.mkdir, threading.Event()

    def overtaken(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if path == parent and not raced.is_set():
            raced.set()
            if not made_again:
                parent.rmdir()
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    store = DirectoryStore(tmp_path)
    await store.put("job/data/1", b"x")
    assert raced.is_set() and await store.get("job/data/1") == b"x"


async def test_an_emptied_directory_goes_and_writers_beside_its_end_do_not_fail(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)

    async def come_and_go(name: str) -> None:
        for _ in range(50):
            await store.put(f"job/data/{name}", b"x")
            assert await store.get(f"job/data/{name}") == b"x"
            await store.delete(f"job/data/{name}")

    await asyncio.gather(*(come_and_go(str(n)) for n in range(4)))
    assert os.listdir(tmp_path / "job") == []
