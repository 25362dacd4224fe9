"""A MinIO of one's own."""

from __future__ import annotations

from typing import Any

from chaos.server import HttpServer
from chaos.tools import binary

ACCESS_KEY = "ckptd-test"
SECRET_KEY = "ckptd-test-secret"  # noqa: S105 - of a server on loopback that lives as long as a test
REGION = "us-east-1"


class MinioServer(HttpServer):
    """One MinIO node, on loopback, on tmpfs where there is one."""

    name = "minio"
    ready_path = "/minio/health/ready"

    def command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        return [str(binary("minio")), "server", "--quiet", "--address", f"{self.host}:{self.port}", str(data)]

    def environment(self) -> dict[str, str]:
        return {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "on",  # data on the root disk or on tmpfs is fine here
        }

    @property
    def storage_options(self) -> dict[str, object]:
        """What a store needs to get in."""
        return {
            "endpoint_url": self.endpoint,
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "client_kwargs": {"region_name": REGION},
        }

    def client(self) -> Any:
        """A botocore client that shares nothing with s3fs: for looking past the store."""
        import botocore.session

        return botocore.session.Session().create_client(
            "s3", REGION, endpoint_url=self.endpoint, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
        )

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its s3:// URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"
