"""The fault proxy passes all on unchanged but for what it was told to do; the store's driver takes that as it should."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from chaos.minio import MinioServer
from chaos.s3proxy import READS, WRITES, Fault, Kind, S3Proxy
from ckptd.errors import AlreadyExistsError, StoreConfigError, UnavailableError
from ckptd.store.base import Store
from ckptd.store.open import open_store

BODY = bytes(range(256)) * 300


@pytest.fixture
async def both(minio: MinioServer) -> AsyncIterator[tuple[S3Proxy, Store]]:
    bucket = f"proxy-{secrets.token_hex(4)}"
    minio.make_bucket(bucket)
    proxy = S3Proxy(minio.port, bucket, seed=1)
    proxy.start()
    store = open_store(f"s3://{bucket}", {**minio.storage_options, "endpoint_url": proxy.endpoint})
    yield proxy, store
    await store.close()
    proxy.close()


async def test_it_passes_on(both: tuple[S3Proxy, Store]) -> None:
    proxy, store = both
    await store.put("data/a=1+2/b", BODY)
    await store.create("log/0", b"one")
    with pytest.raises(AlreadyExistsError):
        await store.create("log/0", b"two")
    assert await store.get("data/a=1+2/b") == BODY
    assert await store.get("data/a=1+2/b", 100, 300) == BODY[100:300]
    assert (await store.info("data/a=1+2/b")).size_bytes == len(BODY)
    assert [info.key async for info in store.list("data/")] == ["data/a=1+2/b"]
    await store.delete("log/0")
    assert [info.key async for info in store.list("log/")] == []
    assert not proxy.counts
    assert set(proxy.stored) == {"data/a=1+2/b", "log/0"}


@pytest.mark.parametrize("kind", ["503", "500", "409", "lost"])
async def test_a_write_that_may_be_tried_again(both: tuple[S3Proxy, Store], kind: Kind) -> None:
    proxy, store = both
    with proxy.fault(Fault(kind, WRITES, key="^log/", limit=1)) as fault:
        with pytest.raises(UnavailableError):
            await store.create("log/7", BODY)
        assert fault.done == 1
        if kind == "lost":
            with pytest.raises(AlreadyExistsError):
                await store.create("log/7", BODY)
        else:
            await store.create("log/7", BODY)
    assert proxy.counts == {f"{kind} CREATE": 1}
    assert await store.get("log/7") == BODY


async def test_reads_that_go_wrong(both: tuple[S3Proxy, Store]) -> None:
    proxy, store = both
    await store.put("data/x", BODY)
    with proxy.fault(Fault("cut", READS, limit=1)), pytest.raises(UnavailableError):
        await store.get("data/x", 0, len(BODY))
    with proxy.fault(Fault("flip", READS)):
        got = await store.get("data/x", 0, len(BODY))
    assert sum(a != b for a, b in zip(got, BODY, strict=True)) == 1
    with proxy.fault(Fault("expired", READS)), pytest.raises(StoreConfigError, match="expired"):
        await store.get("data/x", 0, len(BODY))
