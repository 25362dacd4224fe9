"""The objects of a store, read past all of ckptd's own code: files, or botocore's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Objects(Protocol):
    """What the checker needs of a store. Keys are relative to the store's URL."""

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None when there is none."""
        ...

    def names(self, prefix: str) -> list[str]:
        """The keys that start with ``prefix`` (ends with a slash), in order."""
        ...


class DirectoryObjects:
    """Of a directory store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)


class S3Objects:
    """Of a bucket, through a botocore client of its own."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def get(self, key: str) -> bytes | None:
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None
        return body

    def names(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))
