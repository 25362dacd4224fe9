"""Is this a store that a commit log can live in? (PROTOCOLS 4.1)"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from ckptd.errors import AlreadyExistsError, StoreError, UnavailableError, UnsafeStoreError
from ckptd.store.base import Store

_RACERS = 8


async def probe(store: Store, prefix: str) -> None:
    """Create keys under ``<prefix>probe/`` twice, once one after the other and once at the same time.

    ``prefix`` is empty or ends in '/'. Raises UnsafeStoreError when a create overwrites or has no single winner, and
    UnavailableError or StoreConfigError when the store does not let us find out. The keys are deleted afterwards.
    """
    name = f"{prefix}probe/{secrets.token_hex(16)}"
    keys = (f"{name}-twice", f"{name}-race")
    try:
        await _create_twice(store, keys[0])
        await _create_at_once(store, keys[1])
    finally:
        for key in keys:
            with suppress(StoreError):  # litter is harmless, and must not hide the finding
                await store.delete(key)


async def _create_twice(store: Store, key: str) -> None:
    await store.create(key, b"first")
    try:
        await store.create(key, b"second")
    except AlreadyExistsError:
        pass
    else:
        raise _unsafe(store, "a second create of one key succeeded")
    if await store.get(key) != b"first":
        raise _unsafe(store, "a refused create changed the object")


async def _create_at_once(store: Store, key: str) -> None:
    bodies = [f"racer {n}".encode() for n in range(_RACERS)]
    results = await asyncio.gather(*(store.create(key, body) for body in bodies), return_exceptions=True)
    won, doubtful = [], []
    for body, result in zip(bodies, results, strict=True):
        if result is None:
            won.append(body)
        elif isinstance(result, UnavailableError):
            doubtful.append(body)  # S3 says 409 to some racers: it may or may not have been written
        elif not isinstance(result, AlreadyExistsError):
            raise result
    if len(won) > 1 or not won + doubtful:
        raise _unsafe(store, f"{len(won)} of {_RACERS} simultaneous creates of one key succeeded")
    if await store.get(key) not in (won or doubtful):
        raise _unsafe(store, "another body than the winner's was read back after simultaneous creates")


def _unsafe(store: Store, what: str) -> UnsafeStoreError:
    return UnsafeStoreError(
        f"{what}, so two coordinators could both commit; use a store with conditional writes "
        f"(S3, Azure, GCS, a recent MinIO, a directory): store={store.url}"
    )
