"""The fsspec driver: GCS and whatever else fsspec knows, each in threads.

Options that a user gives go to the file system unchanged and win over ours. Credentials are found as the file system finds them
for everybody else (environment, profile, instance).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from ckptd.errors import NotFoundError, StoreConfigError, StoreError, UnsafeStoreError
from ckptd.store.base import Body, Bytes, ObjectInfo, pieces_of
from ckptd.store.fsspec_errors import is_out_of_range, translate
from ckptd.store.keys import check_create_body, check_directory, check_key, check_prefix, check_range
from ckptd.store.threads import StoreThreads

_GCS = ("gs", "gcs")
# Above the biggest object we write: one object is one request, so no half-done multipart upload can be left over.
_ONE_REQUEST_BYTES = 2**30
# They take mode="create", and look first and write then.
_RACY = ("memory",)

_CONNECT_TIMEOUT_SECONDS = 5
_READ_TIMEOUT_SECONDS = 30
# A call gives up when it is slower than this on top of the timeouts above. The libraries' own timeouts don't cover a server
# that stops reading in the middle of a body: that call would hang for ever.
_SLOWEST_BYTES_PER_SECOND = 256 * 1024
# What a read without an end, or a listing, is taken to bring: our biggest object.
_UNKNOWN_BYTES = 64 * 2**20


class FsspecStore:
    """Objects below one fsspec URL, for example ``gs://bucket/prefix``."""

    def __init__(self, url: str, storage_options: Mapping[str, object] | None = None) -> None:
        """Make the file system object; nothing is asked of the store yet. Raises StoreConfigError."""
        protocol = url.partition("://")[0]
        self._url = _without_credentials(url)
        options = _with_defaults(protocol, storage_options or {})
        try:
            filesystem, path = url_to_fs(url, **options)
        except ImportError as error:
            raise StoreConfigError(f"install the package that serves {protocol}:// first: {error} store={self._url}") from error
        except (ValueError, TypeError, KeyError, OSError) as error:
            name = type(error).__name__
            raise StoreConfigError(
                f"URL or storage options don't suit this file system: store={self._url} error={name}"
            ) from error
        self._fs: AbstractFileSystem = filesystem
        self._root = str(path).rstrip("/")
        self._one_request: dict[str, object] = {"chunksize": _ONE_REQUEST_BYTES} if protocol in _GCS else {}
        self._creates_atomically = protocol not in _RACY and _implements_create(filesystem)
        self._threads = StoreThreads()
        self.check: Callable[[str], str] = check_key  # what keys may look like
        _turn_off_retries(filesystem, protocol)

    @property
    def url(self) -> str:
        return self._url

    async def put(self, key: str, data: Body) -> None:
        # few file systems take more than bytes: one copy, in a thread, as 16 MiB of it are milliseconds
        body = await self._threads.run(lambda: _body(data))
        await self._call("put", key, len(body), "pipe_file", self._path(key), body, **self._one_request)

    async def create(self, key: str, data: Bytes) -> None:
        body = _body(data)
        check_create_body(len(body))
        path = self._path(key)
        if not self._creates_atomically:
            raise UnsafeStoreError(f"this file system can't refuse a second create of one key: store={self._url}")
        await self._call("create", key, len(body), "pipe_file", path, body, mode="create", **self._one_request)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        check_range(start, end)
        if start == end:
            await self.info(key)
            return b""
        span = {} if start == 0 and end is None else {"start": start, "end": end}
        size_bytes = _UNKNOWN_BYTES if end is None else end - start
        try:
            found: bytes = await self._call("get", key, size_bytes, "cat_file", self._path(key), **span)
        except StoreError as error:
            if isinstance(error.__cause__, Exception) and is_out_of_range(error.__cause__):
                return b""
            raise
        return found

    async def info(self, key: str) -> ObjectInfo:
        found = await self._call("info", key, 0, "info", self._path(key))
        if found["type"] != "file":
            raise NotFoundError(f"no such object key={key} store={self._url}")
        return _info(key, found)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        top = f"{self._root}/{check_prefix(prefix).rpartition('/')[0]}".rstrip("/")
        try:
            found = await self._call("list", prefix, _UNKNOWN_BYTES, "find", top, detail=True)
        except NotFoundError:
            return
        for path, details in found.items():
            key = path[len(self._root) + 1 :]
            if key.startswith(prefix) and details["type"] == "file":
                yield _info(key, details)

    async def children(self, prefix: str) -> Sequence[str]:
        top = f"{self._root}/{check_directory(prefix)}".rstrip("/")
        try:
            found = await self._call("list", prefix, _UNKNOWN_BYTES, "ls", top, detail=True)
        except NotFoundError:
            return []
        names = [str(entry["name"]).rstrip("/") for entry in found if entry["type"] == "directory"]
        return [name.rpartition("/")[2] for name in names if len(name) > len(top)]

    async def delete(self, key: str) -> None:
        with suppress(NotFoundError):
            await self._call("delete", key, 0, "rm_file", self._path(key))

    async def close(self) -> None:
        self._threads.close()

    def _path(self, key: str) -> str:
        return f"{self._root}/{self.check(key)}"

    async def _call(self, verb: str, key: str, size_bytes: int, method: str, /, *args: object, **options: object) -> Any:
        """Run one method of the file system in a thread, within the time that ``size_bytes`` may take."""
        deadline_seconds = _CONNECT_TIMEOUT_SECONDS + _READ_TIMEOUT_SECONDS + size_bytes / _SLOWEST_BYTES_PER_SECOND

        def call() -> Any:
            self._fs.invalidate_cache()
            if isinstance(self._fs, AsyncFileSystem):
                return sync(self._fs.loop, getattr(self._fs, f"_{method}"), *args, timeout=deadline_seconds, **options)
            return getattr(self._fs, method)(*args, **options)

        try:
            return await self._threads.run(call)
        except Exception as error:
            raise translate(error, verb, key, self._url) from error


def _with_defaults(protocol: str, given: Mapping[str, object]) -> dict[str, object]:
    """Our options below the user's."""
    # Our own instance, as closing it must not close the user's; no cached listings, as others write, too.
    options: dict[str, object] = {"skip_instance_cache": True, "use_listings_cache": False, **given}
    if protocol in _GCS:
        import aiohttp

        # Read by gcsfs when it is first imported: the experimental class asks a second, gRPC service about each bucket.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
        options = {"requests_timeout": timeout, **options}
    return options


def _implements_create(filesystem: AbstractFileSystem) -> bool:
    """False if ``mode="create"`` would end in fsspec's base class, which looks first and writes then: a race."""
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._pipe_file is not AsyncFileSystem._pipe_file
    return type(filesystem).pipe_file is not AbstractFileSystem.pipe_file


def _turn_off_retries(filesystem: AbstractFileSystem, protocol: str) -> None:
    """Leave trying again to RetryingStore, which knows which calls may be repeated and for how long."""
    if protocol in _GCS:
        # gcsfs has no setting for it: take the function out of its retrying decorator, where there is one.
        bare = getattr(type(filesystem)._request, "__wrapped__", None)
        if bare is not None:
            filesystem._request = partial(bare, filesystem)


def _body(data: Body) -> bytes | bytearray:
    return data if isinstance(data, bytes | bytearray) else b"".join(pieces_of(data))


def _info(key: str, details: Mapping[str, Any]) -> ObjectInfo:
    for name in ("LastModified", "mtime", "last_modified", "modified", "created"):
        when = details.get(name)
        if isinstance(when, datetime):
            return ObjectInfo(key, int(details["size"]), when.timestamp())
        if isinstance(when, (int, float)):
            return ObjectInfo(key, int(details["size"]), float(when))
    raise UnsafeStoreError(f"this file system does not say when an object was written key={key}")


def _without_credentials(url: str) -> str:
    protocol, _, rest = url.partition("?")[0].partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if ":" in user:
        user, at = "", ""
    return f"{protocol}://{user}{at}{host}{slash}{path}"


def known_protocols() -> frozenset[str]:
    """URL schemes that fsspec knows, installed or not."""
    return frozenset(fsspec.available_protocols())
