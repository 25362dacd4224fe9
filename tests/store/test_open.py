"""URLs, and what real servers answer to mistakes and outages."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from chaos.minio import SECRET_KEY, MinioServer
from chaos.server import free_port
from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, StoreError, UnavailableError
from ckptd.store import obstore_store
from ckptd.store.base import Bytes
from ckptd.store.directory import DirectoryStore
from ckptd.store.fsspec_store import FsspecStore
from ckptd.store.obstore_store import ObstoreStore
from ckptd.store.open import check_store, open_store
from tests.servers import FakeGcsServer
from tests.waiting import eventually


@pytest.fixture
def own_minio() -> Iterator[MinioServer]:
    """One that the test may kill."""
    server = MinioServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


async def refusal(url: str, options: Mapping[str, object]) -> str:
    with pytest.raises(StoreConfigError) as caught:
        await check_store(open_store(url, options))
    assert SECRET_KEY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_url_forms(minio: MinioServer) -> None:
    for url in ("/some/where", "file:///some/where"):
        store = open_store(url)
        assert isinstance(store, DirectoryStore)
        assert store.url == "file:///some/where"
    assert isinstance(open_store("s3://bucket/a", minio.storage_options), ObstoreStore)
    assert isinstance(open_store("gs://bucket/a", {"token": "anon"}), FsspecStore)
    assert open_store("s3a://bucket/a", minio.storage_options).url == "s3a://bucket/a"


@pytest.mark.parametrize(
    "url", ["", "some/where", "s3", "s3:/bucket", "nosuch://x", "file://host/x", "local:///x", "simplecache::s3://b/p", "s3://"]
)
def test_wrong_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreConfigError):
        open_store(url)


def test_no_password_is_repeated() -> None:
    with pytest.raises(StoreConfigError) as caught:
        open_store("postgres://me:hunter2@host/x")
    assert "hunter2" not in str(caught.value)
    assert open_store("memory://me:hunter2@host/x").url == "memory://host/x"


def test_a_directory_takes_no_options() -> None:
    with pytest.raises(StoreConfigError, match="options"):
        open_store("/x", {"key": "y"})


async def test_missing_bucket(minio: MinioServer, fake_gcs: FakeGcsServer) -> None:
    assert "the bucket does not exist" in await refusal("s3://no-such-bucket/p", minio.storage_options)
    assert "the bucket does not exist" in await refusal("gs://no-such-bucket/p", fake_gcs.storage_options)


async def test_a_missing_bucket_is_never_an_empty_one(minio: MinioServer) -> None:
    store = open_store("s3://no-such-bucket/p", minio.storage_options)
    with pytest.raises(StoreConfigError):
        await store.get("log/0")
    with pytest.raises(StoreConfigError):
        await store.info("log/0")
    with pytest.raises(StoreConfigError):
        await store.create("log/0", b"x")
    with pytest.raises(StoreConfigError):
        [info async for info in store.list("log/")]


async def test_bad_bucket_name(minio: MinioServer) -> None:
    for url in ("s3://No_Such/p", "s3://x!/p"):
        assert "bucket" in await refusal(url, minio.storage_options)


async def test_wrong_credentials(minio: MinioServer, minio_url: str) -> None:
    for wrong in ({"key": "nobody"}, {"secret": "not the secret"}):
        assert "does not know these credentials" in await refusal(minio_url, {**minio.storage_options, **wrong})


async def test_credentials_without_rights(minio: MinioServer, minio_url: str) -> None:
    anonymous = {"endpoint_url": minio.endpoint, "anon": True}
    assert "may not do this" in await refusal(minio_url, anonymous)


async def test_impossible_options(minio: MinioServer, minio_url: str) -> None:
    for wrong in ({"no_such_option": 1}, {"config_kwargs": {"no_such": 1}}, {"config_kwargs": 5}, {"endpoint_url": "nonsense"}):
        await refusal(minio_url, {**minio.storage_options, **wrong})


async def test_nobody_listens() -> None:
    for store in (
        open_store("s3://b/p", {"endpoint_url": f"http://127.0.0.1:{free_port()}", "key": "k", "secret": "s"}),
        open_store("gs://b/p", {"endpoint_url": f"http://127.0.0.1:{free_port()}", "token": "anon"}),
        open_store("az://box/p", {"endpoint": f"http://127.0.0.1:{free_port()}/a", "account_name": "a", "account_key": "aGE="}),
    ):
        for call in (store.get("a"), store.put("a", b"x"), store.create("a", b"x"), store.info("a"), store.delete("a")):
            with pytest.raises(UnavailableError):
                await call


async def test_a_killed_server_is_unavailable_and_comes_back_with_everything(own_minio: MinioServer) -> None:
    store = open_store(own_minio.make_bucket("bucket"), own_minio.storage_options)
    await store.create("log/0", b"before")
    own_minio.kill()
    for call in (store.get("log/0"), store.create("log/1", b"x"), store.put("log/2", b"x")):
        with pytest.raises(UnavailableError):
            await call
    own_minio.start()

    async def is_back() -> bool:
        try:
            return await store.get("log/0") == b"before"
        except UnavailableError:
            return False

    await eventually(is_back, "the store answers again")
    with pytest.raises(AlreadyExistsError):
        await store.create("log/0", b"after")
    with pytest.raises(NotFoundError):
        await store.get("log/1")


async def test_a_frozen_server_is_unavailable_in_time(own_minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of a body, where the client's timeouts don't reach."""
    monkeypatch.setattr(obstore_store, "SLOWEST_BYTES_PER_SECOND", 2**30)
    url = own_minio.make_bucket("bucket")
    store = open_store(url, {**own_minio.storage_options, "config_kwargs": {"read_timeout": 0.5, "connect_timeout": 0.5}})
    await open_store(url, own_minio.storage_options).put("a", b"x")  # whose timeouts a busy machine keeps
    own_minio.freeze()
    try:
        with pytest.raises(UnavailableError):
            await store.get("a")
        with pytest.raises(UnavailableError):
            await store.create("b", b"x")
        with pytest.raises(UnavailableError):
            await store.put("c", bytes(32 * 2**20))
    finally:
        own_minio.thaw()


async def test_a_store_that_gives_back_other_bytes_is_refused(tmp_path: Path) -> None:
    class Garbling(DirectoryStore):
        async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
            return bytes(await super().get(key, start, end))[::-1]

    store = Garbling(tmp_path)
    with pytest.raises(StoreError, match="other bytes"):
        await check_store(store)
