"""The obstore driver: S3 and Azure; bodies are sent from, and given out as, the memory they lie in.

Ranges are read by obstore's coroutines, as a blocking call wakes its thread for each 64 KiB that come; all else is in threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import obstore
from obstore.store import ObjectStore

from ckptd.errors import NotFoundError, StoreError
from ckptd.store.base import Body, Bytes, ObjectInfo, pieces_of, size_of
from ckptd.store.coroutines import coroutines
from ckptd.store.keys import check_create_body, check_directory, check_key, check_prefix, check_range
from ckptd.store.obstore_errors import answer, is_out_of_range, translate
from ckptd.store.threads import StoreThreads

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS: Final = 5.0
READ_TIMEOUT_SECONDS: Final = 30.0
# A call gives up when it is slower than this on top of the timeouts above: they don't cover a server that stops reading in the
# middle of a body, nor one that sends a byte now and then.
SLOWEST_BYTES_PER_SECOND = 256 * 1024
# What a read without an end, or a listing, is taken to bring: our biggest object.
_UNKNOWN_BYTES = 64 * 2**20
# Times are allowed for a body of so much, twice as much, and so on.
_SMALL_BYTES = 2**20
_LIST_CHUNK = 1000
# A server or a load balancer closes an idle connection after some 20 s or more: a request on one that it is closing fails.
_IDLE_SECONDS: Final = 15
# Trying again is RetryingStore's, which knows which calls may be repeated and for how long.
NO_RETRIES: Final[Any] = {"max_retries": 0}


class Connect(Protocol):
    """Makes a client of the bucket; ``transport`` is obstore's ClientConfig."""

    def __call__(self, transport: dict[str, Any]) -> ObjectStore: ...


class Credentials(Protocol):
    """Where the store's credentials come from; obstore calls it when it needs some."""

    @property
    def trouble(self) -> StoreError | None:
        """Why there are none, after a call has failed for it."""
        ...


@dataclass(frozen=True)
class Place:
    """A bucket. ``root`` has no '/' at either end; ``read_seconds`` is for silence, ``connect_seconds`` for a connection."""

    url: str
    root: str
    connect: Connect
    connect_seconds: float
    read_seconds: float
    credentials: Credentials | None


class ObstoreStore:
    """Objects below a place of one bucket."""

    def __init__(self, place: Place) -> None:
        """Raises what ``place.connect`` raises."""
        self._place = place
        self._threads = StoreThreads()
        self.check: Callable[[str], str] = check_key  # what keys may look like
        self._clients: dict[tuple[bool, int], ObjectStore] = {}
        self._client(0)  # so that what obstore won't take is found out now

    @property
    def url(self) -> str:
        return self._place.url

    async def put(self, key: str, data: Body) -> None:
        await self._write("put", key, data, "overwrite")

    async def create(self, key: str, data: Bytes) -> None:
        check_create_body(memoryview(data).nbytes)
        await self._write("create", key, data, "create")

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        check_range(start, end)
        path = self._path(key)
        if start == end:
            await self.info(key)
            return b""

        client = self._client(_UNKNOWN_BYTES if end is None else end - start)
        # an empty object has no range at all, not even one from 0
        options: Any = {"range": {"offset": start}} if start else None
        try:
            if end is None:
                return memoryview(await self._call("get", key, lambda: obstore.get(client, path, options=options).bytes()))
            read = partial(obstore.get_range_async, client, path, start=start, end=end)
            return memoryview(await self._ended("get", key, coroutines().run(read)))
        except StoreError as error:
            if isinstance(error.__cause__, Exception) and is_out_of_range(error.__cause__):
                return b""
            raise

    async def info(self, key: str) -> ObjectInfo:
        path, client = self._path(key), self._client(0)
        try:
            found = await self._call("info", key, lambda: obstore.head(client, path))
        except NotFoundError:
            await self.get(key, 0, 1)  # an answer to HEAD has no body: this one says whether it is the bucket that is missing
            raise
        return _info(key, found)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        # obstore's prefixes are whole names between slashes.
        top = self._below(check_prefix(prefix).rpartition("/")[0])
        client = self._client(_UNKNOWN_BYTES)
        with suppress(NotFoundError):
            for found in await self._call(
                "list", prefix, lambda: obstore.list(client, prefix=top, chunk_size=_LIST_CHUNK).collect()
            ):
                key = found["path"][len(self._below("")) :].lstrip("/")
                if key.startswith(prefix):
                    yield _info(key, found)

    async def children(self, prefix: str) -> Sequence[str]:
        top = self._below(check_directory(prefix).rstrip("/"))
        client = self._client(_UNKNOWN_BYTES)
        try:
            found = await self._call("list", prefix, lambda: obstore.list_with_delimiter(client, prefix=top))
        except NotFoundError:
            return []
        return [name.rpartition("/")[2] for name in found["common_prefixes"]]

    async def delete(self, key: str) -> None:
        path, client = self._path(key), self._client(0)
        with suppress(NotFoundError):
            await self._call("delete", key, lambda: obstore.delete(client, path))

    async def close(self) -> None:
        self._threads.close()

    def _path(self, key: str) -> str:
        return self._below(self.check(key))

    def _below(self, path: str) -> str:
        return "/".join(part for part in (self._place.root, path) if part)

    def _client(self, size_bytes: int, writing: bool = False) -> ObjectStore:
        """For a call that moves ``size_bytes``: obstore's timeouts are a client's, so there is one for each doubling of a size.

        While a body is being sent there is silence; so silence has a time of its own in reads only.
        """
        blocks = 1 << max(0, -(-size_bytes // _SMALL_BYTES) - 1).bit_length()
        if (writing, blocks) not in self._clients:
            place = self._place
            seconds = place.connect_seconds + place.read_seconds + blocks * _SMALL_BYTES / SLOWEST_BYTES_PER_SECOND
            transport: dict[str, Any] = {
                "allow_http": True,
                "connect_timeout": timedelta(seconds=place.connect_seconds),
                "pool_idle_timeout": timedelta(seconds=_IDLE_SECONDS),
                "timeout": timedelta(seconds=seconds),
            }
            if not writing:
                transport["read_timeout"] = timedelta(seconds=place.read_seconds)
            self._clients[writing, blocks] = place.connect(transport)
        return self._clients[writing, blocks]

    async def _write(self, verb: str, key: str, data: Body, mode: Any) -> None:
        path, client = self._path(key), self._client(size_of(data), writing=True)
        # One object is one request, so no half-done multipart upload can be left over.
        await self._call(verb, key, lambda: obstore.put(client, path, list(pieces_of(data)), mode=mode, use_multipart=False))

    async def _call(self, verb: str, key: str, call: Callable[[], T]) -> T:
        return await self._ended(verb, key, self._threads.run(call))

    async def _ended(self, verb: str, key: str, running: Awaitable[T]) -> T:
        try:
            return await running
        except Exception as error:
            raise self._translated(error, verb, key) from error

    def _translated(self, error: Exception, verb: str, key: str) -> StoreError:
        credentials = self._place.credentials
        if credentials is not None and credentials.trouble is not None and not answer(error)[1]:
            return credentials.trouble
        return translate(error, verb, key, self.url)


def _info(key: str, found: Any) -> ObjectInfo:
    modified: datetime = found["last_modified"]
    return ObjectInfo(key, int(found["size"]), modified.timestamp())
