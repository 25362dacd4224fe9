"""The words of S3's storage options, where botocore looks for what isn't said, and requests that are given up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path

import pytest

from chaos.minio import ACCESS_KEY, REGION, SECRET_KEY, MinioServer
from chaos.server import free_port
from ckptd.errors import StoreConfigError, UnavailableError
from ckptd.store import obstore_store
from ckptd.store.open import check_store, open_store
from ckptd.store.s3 import open_s3
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the developer's own settings nor the metadata address."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def bucket_url(url: str, options: Mapping[str, object]) -> tuple[str, str]:
    """(URL of the bucket, region) that obstore was given."""
    config = open_s3(url, options)._client(0).config  # type: ignore[union-attr]
    return str(config["endpoint"]), str(config["region"])


@pytest.mark.parametrize(
    ("options", "expected", "region"),
    [
        ({}, "https://bucket.s3.amazonaws.com", "us-east-1"),
        ({"client_kwargs": {"region_name": "eu-west-1"}}, "https://bucket.s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ({"config_kwargs": {"region_name": "eu-west-1"}}, "https://bucket.s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ({"endpoint_url": "http://10.1.2.3:9000"}, "http://10.1.2.3:9000/bucket", "us-east-1"),
        ({"client_kwargs": {"endpoint_url": "https://minio.lan/s3"}}, "https://minio.lan/s3/bucket", "us-east-1"),
        (
            {"endpoint_url": "https://minio.lan", "config_kwargs": {"s3": {"addressing_style": "virtual"}}},
            "https://bucket.minio.lan",
            "us-east-1",
        ),
        (
            {"client_kwargs": {"region_name": "eu-west-1"}, "config_kwargs": {"s3": {"addressing_style": "path"}}},
            "https://s3.eu-west-1.amazonaws.com/bucket",
            "eu-west-1",
        ),
    ],
)
def test_where_the_bucket_is(options: dict[str, object], expected: str, region: str) -> None:
    assert bucket_url("s3://bucket/prefix", {"anon": True, **options}) == (expected, region)


def test_a_bucket_whose_name_no_certificate_covers_is_in_the_path() -> None:
    found, _ = bucket_url("s3://my.bucket/p", {"anon": True, "client_kwargs": {"region_name": "eu-west-1"}})
    assert found == "https://s3.eu-west-1.amazonaws.com/my.bucket"


def test_endpoint_and_region_from_where_boto_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://10.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert bucket_url("s3://bucket", {"anon": True}) == ("http://10.0.0.1:1/bucket", "eu-north-1")
    (tmp_path / "config").write_text("[profile lab]\nregion = ap-south-1\nendpoint_url = http://10.0.0.2:2\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert bucket_url("s3://bucket", {"anon": True, "profile": "lab"}) == ("http://10.0.0.2:2/bucket", "ap-south-1")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"no_such_option": 1}, "no_such_option"),
        ({"use_listings_cache": True, "max_concurrency": 3}, "max_concurrency, use_listings_cache"),
        ({"config_kwargs": {"retries": {}}}, "retries"),
        ({"config_kwargs": {"s3": {"payload_signing_enabled": True}}}, "payload_signing_enabled"),
        ({"config_kwargs": 5}, "config_kwargs"),
        ({"config_kwargs": {"read_timeout": "soon"}}, "read_timeout"),
        ({"s3_additional_kwargs": {"ACL": "public-read"}}, "ACL"),
        ({"key": "k"}, "key and secret"),
        ({"profile": "nobody"}, "ProfileNotFound"),
        ({"endpoint_url": "nonsense"}, "ValueError"),
        ({"config_kwargs": {"s3": {"addressing_style": "sideways"}}}, "InvalidS3AddressingStyleError"),
        ({"client_kwargs": {"verify": "/no/such/file.pem"}}, "/no/such/file.pem"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(StoreConfigError, match=named):
        open_store("s3://bucket/p", options)


@pytest.fixture
def endpoint(minio: MinioServer) -> dict[str, object]:
    """Where, but not who."""
    return {"endpoint_url": minio.endpoint, "client_kwargs": {"region_name": REGION}}


async def test_credentials_of_a_profile(
    endpoint: dict[str, object], minio_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
    )
    await check_store(open_store(minio_url, {**endpoint, "profile": "lab"}))
    with pytest.raises(StoreConfigError, match="does not know these credentials"):
        await check_store(open_store(minio_url, endpoint))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    await check_store(open_store(minio_url, endpoint))


async def test_credentials_of_the_environment(
    endpoint: dict[str, object], minio_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    await check_store(open_store(minio_url, endpoint))


async def test_explicit_credentials_are_used_whatever_the_environment_says(
    minio: MinioServer, minio_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_SESSION_TOKEN": "stale",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_CONDITIONAL_PUT": "disabled",
    }.items():
        monkeypatch.setenv(name, value)
    await check_store(open_store(minio_url, minio.storage_options))


async def test_no_credentials_at_all(endpoint: dict[str, object], minio_url: str) -> None:
    store = open_store(minio_url, endpoint)
    for call in (store.get("a"), store.put("a", b"x"), store.create("a", b"x"), store.info("a")):
        with pytest.raises(StoreConfigError, match="no credentials"):
            await call


async def test_a_credential_server_that_is_away(
    endpoint: dict[str, object], minio_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{free_port()}/role")
    store = open_store(minio_url, endpoint)
    with pytest.raises(UnavailableError, match="gives credentials"):
        await store.get("a")


async def test_a_cancelled_put_lets_go_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is up, though the server never reads it to its end; until then it has it, and says so."""
    monkeypatch.setattr(obstore_store, "SLOWEST_BYTES_PER_SECOND", 2**30)
    frozen = MinioServer()
    frozen.start()
    try:
        timeouts = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 1}}
        store = open_store(frozen.make_bucket("bucket"), {**frozen.storage_options, **timeouts})
        body = bytearray(secrets.token_bytes(64 << 20))  # more than sockets buffer
        frozen.freeze()
        putting = asyncio.create_task(store.put("cancelled", body))

        def held() -> bool:
            try:
                body.append(0)
            except BufferError:
                return True
            body.pop()
            return False

        await eventually(held, "the request has the body")
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert held()
        await eventually(lambda: not held(), "the body let go of")
    finally:
        frozen.close()
