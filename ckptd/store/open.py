"""From a URL to a store, and the early check that it will work."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from ckptd.errors import NotFoundError, StoreConfigError, StoreError
from ckptd.store.azure import open_azure
from ckptd.store.base import Store
from ckptd.store.directory import DirectoryStore
from ckptd.store.fsspec_store import FsspecStore, known_protocols
from ckptd.store.keys import check_file
from ckptd.store.obstore_store import ObstoreStore


def _open_s3(url: str, storage_options: Mapping[str, object]) -> ObstoreStore:
    from ckptd.store.s3 import open_s3  # not above: botocore takes 0.15 s at each start of a command, and only S3 needs it

    return open_s3(url, storage_options)


_OBSTORE = {"s3": _open_s3, "s3a": _open_s3, "az": open_azure, "abfs": open_azure, "abfss": open_azure}
_FORMS = (
    "'/path', 'file:///path', 's3://bucket/prefix', 'gs://bucket/prefix', 'az://container/prefix',"
    " or another URL that fsspec knows"
)


def open_store(url: str, storage_options: Mapping[str, object] | None = None) -> Store:
    """Return the store at ``url``; ``storage_options`` are s3fs' words for S3, obstore's for Azure, and else fsspec's.

    Nothing is read or written. Raises StoreConfigError for a URL of no known form and for options that can't be.
    """
    protocol, separator, rest = url.partition("://")
    if url.startswith("/") or (protocol == "file" and rest.startswith("/")):
        if storage_options:
            raise StoreConfigError("a directory takes no storage options")
        return DirectoryStore(Path(url if url.startswith("/") else unquote(rest)))
    known = protocol in _OBSTORE or protocol in known_protocols()
    if not separator or "::" in url or protocol in ("file", "local") or not known:
        # Only the scheme is repeated: the rest of a mistaken URL may hold a password.
        raise StoreConfigError(f"not the URL of a store; allowed are {_FORMS}: scheme={protocol if separator else 'none'}")
    if not rest.strip("/"):
        raise StoreConfigError(f"the URL names no bucket; write {protocol}://bucket/prefix")
    if protocol in _OBSTORE:
        return _OBSTORE[protocol](url, storage_options or {})
    return FsspecStore(url, storage_options)


def open_files(url: str, storage_options: Mapping[str, object] | None = None) -> Store:
    """As `open_store`, to read files that others have written: keys are their relative names, whatever they look like.

    Raises StoreConfigError, also for a directory of this machine: symbolic links are its reader's concern.
    """
    store = open_store(url, storage_options)
    if not isinstance(store, FsspecStore | ObstoreStore):
        raise StoreConfigError("files of this machine are not read as a store")
    store.check = check_file
    return store


async def check_store(store: Store) -> None:
    """Read, write and delete one small object, so that a mistake shows at start and not at the first checkpoint.

    Raises StoreConfigError (missing bucket, wrong credentials, directory that can't be written) and, when the store can't
    be reached, UnavailableError: whoever calls decides whether to wait.
    """
    key = f"probe/check-{secrets.token_hex(16)}"
    try:
        await store.get(key)
    except NotFoundError:
        pass
    body = key.encode()
    await store.put(key, body)
    try:
        if await store.get(key) != body:
            raise StoreError(f"the store gave back other bytes than were written key={key} store={store.url}")
    finally:
        await store.delete(key)
