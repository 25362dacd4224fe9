"""Servers that a whole test session shares, and the fixtures for them (imported by conftest.py)."""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Iterator

import pytest

from chaos.minio import MinioServer
from chaos.server import HttpServer
from chaos.tools import binary


class FakeGcsServer(HttpServer):
    """fsouza's Google Cloud Storage emulator, in memory."""

    name = "fake-gcs"
    ready_path = "/_internal/healthcheck"

    def command(self) -> list[str]:
        listen = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-backend", "memory"]
        names = ["-public-host", f"127.0.0.1:{self.port}", "-external-url", self.endpoint]
        return [str(binary("fake-gcs-server")), *listen, *names]

    @property
    def storage_options(self) -> dict[str, object]:
        return {"endpoint_url": self.endpoint, "token": "anon", "project": "test"}

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its gs:// URL."""
        body = json.dumps({"name": name}).encode()
        url = f"{self.endpoint}/storage/v1/b?project=test"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10):
            return f"gs://{name}"

    def read(self, bucket: str, name: str) -> bytes:
        """An object's bytes, past every file system library."""
        quoted = name.replace("/", "%2F")
        with urllib.request.urlopen(f"{self.endpoint}/storage/v1/b/{bucket}/o/{quoted}?alt=media", timeout=10) as answer:
            found: bytes = answer.read()
            return found


@pytest.fixture(scope="session")
def minio() -> Iterator[MinioServer]:
    """A MinIO for the session. Don't kill it: tests that do start their own."""
    server = MinioServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[FakeGcsServer]:
    server = FakeGcsServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def minio_url(minio: MinioServer) -> str:
    """The URL of a fresh bucket."""
    return minio.make_bucket(f"t-{secrets.token_hex(8)}")


@pytest.fixture
def gcs_url(fake_gcs: FakeGcsServer) -> str:
    """The URL of a fresh bucket."""
    return fake_gcs.make_bucket(f"t-{secrets.token_hex(8)}")
