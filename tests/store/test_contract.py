"""The contract, run against a directory, MinIO and Azurite through obstore, and fake-gcs-server through gcsfs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.minio import MinioServer
from ckptd.store.base import Store
from ckptd.store.directory import DirectoryStore
from ckptd.store.limit import LimitedStore
from ckptd.store.open import open_store
from ckptd.store.retry import RetryingStore
from tests.servers import AzuriteServer, FakeGcsServer
from tests.store.contract import StoreContract, Stored


class TestDirectory(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = DirectoryStore(tmp_path / "root" / "of it")
        yield store
        await store.close()

    @pytest.fixture
    def stored(self, tmp_path: Path) -> Stored:
        return lambda key: (tmp_path / "root" / "of it" / key).read_bytes()


class TestMinio(StoreContract):
    @pytest.fixture
    async def store(self, minio: MinioServer, minio_url: str) -> AsyncIterator[Store]:
        store = open_store(f"{minio_url}/some/prefix", minio.storage_options)
        yield store
        await store.close()

    @pytest.fixture
    def stored(self, minio: MinioServer, minio_url: str) -> Stored:
        client, bucket = minio.client(), minio_url.removeprefix("s3://")

        def read(key: str) -> bytes:
            body: bytes = client.get_object(Bucket=bucket, Key=f"some/prefix/{key}")["Body"].read()
            return body

        return read


class TestAzure(StoreContract):
    @pytest.fixture
    async def store(self, azurite: AzuriteServer, azure_url: str) -> AsyncIterator[Store]:
        store = open_store(f"{azure_url}/some/prefix", azurite.storage_options)
        yield store
        await store.close()

    @pytest.fixture
    def stored(self, azurite: AzuriteServer, azure_url: str) -> Stored:
        return lambda key: azurite.read(azure_url.removeprefix("az://"), f"some/prefix/{key}")


class TestGcs(StoreContract):
    @pytest.fixture
    async def store(self, fake_gcs: FakeGcsServer, gcs_url: str) -> AsyncIterator[Store]:
        store = open_store(f"{gcs_url}/some/prefix", fake_gcs.storage_options)
        yield store
        await store.close()

    @pytest.fixture
    def stored(self, fake_gcs: FakeGcsServer, gcs_url: str) -> Stored:
        return lambda key: fake_gcs.read(gcs_url.removeprefix("gs://"), f"some/prefix/{key}")


class TestWrapped(StoreContract):
    """The wrappers keep the contract."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = LimitedStore(RetryingStore(DirectoryStore(tmp_path)), concurrency=4, upload_bytes_per_second=1 << 40)
        yield store
        await store.close()

    @pytest.fixture
    def stored(self, tmp_path: Path) -> Stored:
        return lambda key: (tmp_path / key).read_bytes()
