"""Servers that a whole test session shares, and the fixtures for them (imported by conftest.py)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pytest

from chaos.minio import MinioServer
from chaos.server import HttpServer
from chaos.tools import azurite as azurite_command
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


AZURE_ACCOUNT = "ckptdtest"
AZURE_KEY = base64.b64encode(b"the key of a server on loopback").decode()
SAS_VERSION = "2022-11-02"


class AzuriteServer(HttpServer):
    """Microsoft's emulator of Azure Blob Storage."""

    name = "azurite"
    ready_status = 400  # to a request of nobody for nothing

    def command(self) -> list[str]:
        listen = ["--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.directory / "data")]
        (self.directory / "data").mkdir(exist_ok=True)
        # As long as the service itself keeps idle connections.
        quiet = ["--silent", "--disableTelemetry", "--disableProductStyleUrl", "--blobKeepAliveTimeout", "120"]
        return [*azurite_command(), *listen, *quiet]

    def environment(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}

    @property
    def account_url(self) -> str:
        return f"{self.endpoint}/{AZURE_ACCOUNT}"

    @property
    def storage_options(self) -> dict[str, object]:
        return {"endpoint": self.account_url, "account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}

    def sas(self, rights: str, container: str = "") -> str:
        """A token for a container, or for the account, signed as Microsoft describes it; it ends after an hour.

        With one for the account Azurite deletes nothing in batches, and obstore deletes in no other way: it answers 500.
        """
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        if container:
            place = f"/blob/{AZURE_ACCOUNT}/{container}"
            signed = [rights, "", ends, place, "", "", "", SAS_VERSION, "c", "", "", "", "", "", "", ""]
            words = {"sv": SAS_VERSION, "sr": "c", "sp": rights, "se": ends}
        else:
            signed = [AZURE_ACCOUNT, rights, "b", "sco", "", ends, "", "", SAS_VERSION, "", ""]
            words = {"sv": SAS_VERSION, "ss": "b", "srt": "sco", "sp": rights, "se": ends}
        signature = hmac.new(base64.b64decode(AZURE_KEY), "\n".join(signed).encode(), hashlib.sha256).digest()
        return urlencode({**words, "sig": base64.b64encode(signature).decode()})

    def make_container(self, name: str) -> str:
        """Make a container and return its az:// URL."""
        url = f"{self.account_url}/{name}?restype=container&{self.sas('cw')}"
        with urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT"), timeout=10):
            return f"az://{name}"

    def read(self, container: str, name: str) -> bytes:
        """An object's bytes, past every library."""
        with urllib.request.urlopen(f"{self.account_url}/{container}/{quote(name)}?{self.sas('r')}", timeout=10) as answer:
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


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    server = AzuriteServer()
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


@pytest.fixture
def azure_url(azurite: AzuriteServer) -> str:
    """The URL of a fresh container."""
    return azurite.make_container(f"t-{secrets.token_hex(8)}")
