"""The leader's hint: whatever keeps the store from taking it ends no coordinator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ckptd.commit.leader import read_hint
from ckptd.coordinator.leader import announce
from ckptd.errors import StoreConfigError, StoreError, UnavailableError
from ckptd.store.base import Bytes
from ckptd.store.directory import DirectoryStore


class Moody(DirectoryStore):
    """Fails as often as it is told to."""

    def __init__(self, root: Path, trouble: StoreError) -> None:
        super().__init__(root)
        self._trouble, self._left = trouble, 3

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        self._left -= 1
        if self._left >= 0:
            raise self._trouble
        return await super().get(key, start, end)


@pytest.mark.parametrize("trouble", [StoreConfigError("the credentials have expired"), UnavailableError("it is away")])
async def test_a_store_in_trouble_ends_no_coordinator(tmp_path: Path, trouble: StoreError) -> None:
    store = Moody(tmp_path, trouble)
    heard: list[str | None] = []
    announced = asyncio.Event()

    def hear(trouble: str | None) -> None:
        heard.append(trouble)
        if trouble is None:
            announced.set()

    async def in_office() -> None:
        raise AssertionError("nobody else is there")

    task = asyncio.create_task(announce(store, "job", "127.0.0.1:1", 1, 0.01, in_office, heard=hear))
    await asyncio.wait([task, asyncio.create_task(announced.wait())], timeout=30, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    assert heard[:4] == [str(trouble)] * 3 + [None]
    hint = await read_hint(store, "job")
    assert hint is not None and hint.address == "127.0.0.1:1"
    await store.close()
