"""A store that overwrites must be found out (PROTOCOLS 4.1)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, UnavailableError, UnsafeStoreError
from ckptd.store.base import Bytes
from ckptd.store.directory import DirectoryStore
from ckptd.store.open import open_store
from ckptd.store.probe import probe
from tests.store.contract import names


class Overwriting(DirectoryStore):
    """create() is put(), as in many servers that drop the condition in silence."""

    async def create(self, key: str, data: Bytes) -> None:
        await self.put(key, data)


class LookThenWrite(DirectoryStore):
    """create() looks first and writes then: right when alone, wrong in a race."""

    async def create(self, key: str, data: Bytes) -> None:
        try:
            await self.info(key)
        except NotFoundError:
            await asyncio.sleep(0)
            await self.put(key, data)
        else:
            raise AlreadyExistsError(key)


class RefuseAndWrite(DirectoryStore):
    """create() reports the conflict, and overwrites all the same."""

    async def create(self, key: str, data: Bytes) -> None:
        try:
            await super().create(key, data)
        except AlreadyExistsError:
            await self.put(key, data)
            raise


class Busy(DirectoryStore):
    """Says 'busy' to whoever comes while another create is on its way, as S3 does with 409."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.creating: set[str] = set()

    async def create(self, key: str, data: Bytes) -> None:
        if key in self.creating:
            raise UnavailableError("409")
        self.creating.add(key)
        try:
            await super().create(key, data)
        finally:
            self.creating.remove(key)


@pytest.mark.parametrize("kind", [Overwriting, LookThenWrite, RefuseAndWrite])
async def test_unsafe_stores_are_refused(tmp_path: Path, kind: type[DirectoryStore]) -> None:
    store = kind(tmp_path)
    with pytest.raises(UnsafeStoreError, match="store=file://"):
        await probe(store, "job/")
    assert await names(store, "") == set()


async def test_conflicts_answered_as_busy_are_fine(tmp_path: Path) -> None:
    await probe(Busy(tmp_path), "")


async def test_a_store_that_is_away_is_not_called_unsafe(tmp_path: Path) -> None:
    class Away(DirectoryStore):
        async def create(self, key: str, data: Bytes) -> None:
            raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await probe(Away(tmp_path), "")


async def test_a_file_system_that_looks_first_is_refused_before_it_can_race() -> None:
    store = open_store("memory://somewhere")
    with pytest.raises(UnsafeStoreError, match="second create"):
        await probe(store, "")
    await store.put("a", b"x")  # the other verbs work
    assert await store.get("a") == b"x"
    assert await names(store, "") == {"a"}
    await store.delete("a")


async def test_a_prefix_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, StoreConfigError)):
        await probe(DirectoryStore(tmp_path), "../")
