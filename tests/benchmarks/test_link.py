"""A link to a MinIO of its own: what it carries arrives, its rate can be changed, nothing of it is left."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from benchmarks.link import Link, LinkedMinio, LinkError


def _able() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"ckptd-able-{os.getpid()}"
    return all(subprocess.run(["ip", "netns", do, name], capture_output=True).returncode == 0 for do in ("add", "delete"))


@pytest.mark.skipif(not _able(), reason="network namespaces need root and iproute2")
def test_a_server_behind_a_link() -> None:
    link = Link()
    minio = LinkedMinio(link)
    try:
        minio.start()
        minio.make_bucket("linked")
        client, body = minio.client(), os.urandom(1 << 20)
        for rate in (50e6, 150e6, None):
            link.cap(rate)
            client.put_object(Bucket="linked", Key="x", Body=body)
            assert client.get_object(Bucket="linked", Key="x")["Body"].read() == body
    finally:
        minio.close()
        link.close()
    left = (
        subprocess.run(["ip", "netns"], text=True, capture_output=True).stdout
        + subprocess.run(["ip", "link"], text=True, capture_output=True).stdout
    )
    assert link.namespace not in left and link.namespace.removeprefix("ckptd-") not in left


def test_who_may_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LinkError, match="root"):
        Link()
