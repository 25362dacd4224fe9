"""What every store must do. A store's test class inherits from StoreContract and looks past its store with ``stored()``."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from ckptd.errors import AlreadyExistsError, NotFoundError
from ckptd.store.base import Store
from ckptd.store.open import check_store
from ckptd.store.probe import probe
from tests.waiting import eventually

Stored = Callable[[str], bytes]

RACERS = 24
BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".tmp-1",
    "a/.b",
    "a b",
    "a\0",
    "a\n",
    "ü",
    "a\\b",
]
BAD_KEYS += ["a?versionId=1", "a*", "a[b]", "a#1", "x" * 201, "/".join(["x" * 100] * 9)]
CLOCK_SLACK_SECONDS = 5.0


async def names(store: Store, prefix: str) -> set[str]:
    return {info.key async for info in store.list(prefix)}


class StoreContract:
    """Fixtures to give: ``store``, and ``stored``, which reads an object's bytes by another way than the store's own."""

    async def test_what_is_put_is_stored_and_replaced_whole(self, store: Store, stored: Stored) -> None:
        await store.put("a/b/c", b"first and long")
        assert stored("a/b/c") == b"first and long"
        await store.put("a/b/c", b"second")
        assert stored("a/b/c") == b"second"
        assert await store.get("a/b/c") == b"second"

    async def test_pieces_are_put_in_a_row(self, store: Store, stored: Stored) -> None:
        raw = memoryview(secrets.token_bytes(3 << 20))
        await store.put("pieces", [raw[:1], raw[1:1], raw[1 : 1 << 20], bytearray(raw[1 << 20 :])])
        assert stored("pieces") == raw
        await store.put("pieces", [])
        assert stored("pieces") == b""

    async def test_what_was_put_is_let_go_of(self, store: Store) -> None:
        """Who owns the memory knows by this when it may be written again."""
        body = np.frombuffer(bytearray(secrets.token_bytes(1 << 20)), np.uint8)
        gone = threading.Event()
        weakref.finalize(body, gone.set)
        await store.put("body", [memoryview(body)[:10], memoryview(body)[10:]])
        del body
        await eventually(gone.is_set, "the body let go of")

    async def test_every_kind_of_buffer_is_taken(self, store: Store, stored: Stored) -> None:
        raw = secrets.token_bytes(1000)
        for key, body in {"b": raw, "ba": bytearray(raw), "mv": memoryview(raw), "part": memoryview(b"xx" + raw)[2:]}.items():
            await store.put(key, body)
            assert stored(key) == raw, key
        await store.create("created", memoryview(raw))
        assert stored("created") == raw

    async def test_an_empty_object_can_be_put_and_read(self, store: Store, stored: Stored) -> None:
        await store.put("empty", b"")
        assert stored("empty") == b""
        assert await store.get("empty") == b""
        assert await store.get("empty", 0, 10) == b""
        assert (await store.info("empty")).size_bytes == 0

    async def test_ranges(self, store: Store) -> None:
        await store.put("r", bytes(range(100)))
        whole = bytes(range(100))
        ranges = [(0, None), (0, 100), (0, 1), (99, 100), (40, 60), (40, None), (90, 200), (100, 101), (500, 600), (500, None)]
        for start, end in [*ranges, (7, 7)]:
            assert await store.get("r", start, end) == whole[start:end], (start, end)
        for start, end in [(-1, 5), (5, 4)]:
            with pytest.raises(ValueError, match="byte range"):
                await store.get("r", start, end)

    async def test_what_is_missing_is_not_found(self, store: Store) -> None:
        await store.put("there/too", b"x")
        for key in ["nothing", "no/such/thing", "there", "there/too2"]:
            for call in (store.get(key), store.get(key, 1, 2), store.get(key, 3, 3), store.info(key)):
                with pytest.raises(NotFoundError, match=f"key={key} "):
                    await call

    async def test_create_refuses_a_taken_key_and_changes_nothing(self, store: Store, stored: Stored) -> None:
        await store.create("log/0", b"mine")
        with pytest.raises(AlreadyExistsError, match="key=log/0 "):
            await store.create("log/0", b"mine")  # the same bytes are no excuse
        with pytest.raises(AlreadyExistsError):
            await store.create("log/0", b"somebody else's, and longer")
        assert stored("log/0") == b"mine"
        await store.put("log/1", b"put")
        with pytest.raises(AlreadyExistsError):
            await store.create("log/1", b"created")
        assert stored("log/1") == b"put"

    async def test_of_many_creators_exactly_one_wins(self, store: Store, stored: Stored) -> None:
        for round_number in range(4):
            key = f"race/{round_number}"
            bodies = [f"{n} {secrets.token_hex(100)}".encode() for n in range(RACERS)]
            results = await asyncio.gather(*(store.create(key, body) for body in bodies), return_exceptions=True)
            winners = [body for body, result in zip(bodies, results, strict=True) if result is None]
            assert len(winners) == 1
            assert [result for result in results if not (result is None or isinstance(result, AlreadyExistsError))] == []
            assert stored(key) == winners[0]

    async def test_an_empty_create_is_refused(self, store: Store) -> None:
        with pytest.raises(ValueError, match="at least one byte"):
            await store.create("empty", b"")
        with pytest.raises(NotFoundError):
            await store.get("empty")

    async def test_info_has_size_and_the_stores_time(self, store: Store) -> None:
        await store.put("i", b"12345")
        info = await store.info("i")
        assert (info.key, info.size_bytes) == ("i", 5)
        assert abs(info.modified_seconds - time.time()) < CLOCK_SLACK_SECONDS  # our test servers share our clock

    async def test_list_gives_what_begins_with_the_prefix(self, store: Store) -> None:
        assert await names(store, "") == set()
        keys = {"a/1", "a/2", "a/b/3", "ab/4", "b"}
        for key in keys:
            await store.put(key, key.encode())
        assert await names(store, "") == keys
        assert await names(store, "a/") == {"a/1", "a/2", "a/b/3"}
        assert await names(store, "a") == keys - {"b"}
        assert await names(store, "a/b") == {"a/b/3"}
        assert await names(store, "no/such/") == set()
        sizes = {info.key: info.size_bytes async for info in store.list("")}
        assert sizes == {key: len(key) for key in keys}

    async def test_list_is_not_a_memory_of_an_earlier_list(self, store: Store) -> None:
        await store.put("l/1", b"x")
        assert await names(store, "l/") == {"l/1"}
        await store.put("l/2", b"x")
        await store.delete("l/1")
        assert await names(store, "l/") == {"l/2"}

    async def test_children_are_the_names_before_the_next_slash(self, store: Store) -> None:
        assert list(await store.children("")) == list(await store.children("job/data/")) == []
        for key in [
            "job/data/1-1.10.0/a.seg",
            "job/data/1-1.10.0/b.seg",
            "job/data/1-2.20.0/deep/c",
            "job/data/file",
            "job2/x",
        ]:
            await store.put(key, b"x")
        assert sorted(await store.children("job/data/")) == ["1-1.10.0", "1-2.20.0"]
        assert sorted(await store.children("")) == ["job", "job2"]
        assert list(await store.children("job/data/file/")) == list(await store.children("no/such/")) == []
        for key in ["job/data/1-1.10.0/a.seg", "job/data/1-1.10.0/b.seg"]:
            await store.delete(key)
        assert list(await store.children("job/data/")) == ["1-2.20.0"]
        await store.put("job/data/1-1.10.0/late", b"x")
        assert sorted(await store.children("job/data/")) == ["1-1.10.0", "1-2.20.0"]
        with pytest.raises(ValueError, match="ends in '/'"):
            await store.children("job/da")

    async def test_delete_is_repeatable(self, store: Store) -> None:
        await store.put("d/1", b"x")
        await store.delete("d/1")
        await store.delete("d/1")
        await store.delete("never/was")
        with pytest.raises(NotFoundError):
            await store.get("d/1")

    async def test_a_whole_segment(self, store: Store, stored: Stored) -> None:
        body = secrets.token_bytes(1 << 20) * 64
        await store.put("big", body)
        digest = hashlib.sha256(body).digest()
        assert hashlib.sha256(stored("big")).digest() == digest
        assert hashlib.sha256(await store.get("big")).digest() == digest
        assert (await store.info("big")).size_bytes == len(body)
        assert await store.get("big", len(body) - 3) == body[-3:]

    async def test_weird_keys_are_refused(self, store: Store) -> None:
        for key in BAD_KEYS:
            for call in (store.put(key, b"x"), store.create(key, b"x"), store.get(key), store.info(key), store.delete(key)):
                with pytest.raises(ValueError, match="not a valid object key"):
                    await call
        assert await names(store, "") == set()
        for prefix in ["/", "a//", "../", ".t", "a b"]:
            with pytest.raises(ValueError, match="not a valid key prefix"):
                await names(store, prefix)

    async def test_check_and_probe_pass_and_leave_nothing(self, store: Store) -> None:
        await check_store(store)
        await probe(store, "job/")
        assert await names(store, "") == set()
