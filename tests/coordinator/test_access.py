"""Who gets in: tokens on every call, TLS with certificates made here, over real connections on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from ckptd.commit.leader import LeaderHint, write_hint
from ckptd.coordinator.leader import check_free, ping
from ckptd.errors import ConfigError, JobInUseError
from ckptd.rpc.access import OPEN, Access, Guard, read_authorities, read_identity, read_token
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc
from ckptd.store.directory import DirectoryStore
from tests.coordinator.test_service import coordinator

TOKEN = "0123456789abcdef"
CALL_SECONDS = 10.0


def secret(file: Path, content: bytes | str) -> Path:
    """A file that only its owner may read."""
    file.touch(mode=0o600)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


class Tls:
    """An authority and a certificate for loopback, in files."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        directory.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = directory / "ca.pem", directory / "cert.pem", directory / "key.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        secret(self.key, issued.private_key_pem.bytes())

    def guard(self, token: str | None = TOKEN) -> Guard:
        return Guard(token, *read_identity(self.cert, self.key))

    def access(self, token: str | None = TOKEN) -> Access:
        return Access(token, read_authorities(self.ca))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path / "tls")


async def code_of(stub: rpc.CoordinatorStub, method: Any) -> grpc.StatusCode:
    """How a call ends that says nothing (or an empty request).

    gRPC says INTERNAL where a stream is refused while its first message is still being sent: then nobody was told why, and it
    is asked again.
    """
    for _ in range(20):
        code = await _code_of(stub, method)
        if code is not grpc.StatusCode.INTERNAL or not method.client_streaming:
            return code
    return code


async def _code_of(stub: rpc.CoordinatorStub, method: Any) -> grpc.StatusCode:
    request = getattr(pb, method.input_type.name)()
    call = getattr(stub, method.name)
    try:
        made = call(iter([request]) if method.client_streaming else request, timeout=CALL_SECONDS)
        if method.server_streaming:
            await made.read()
            made.cancel()
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


METHODS = list(pb.DESCRIPTOR.services_by_name["Coordinator"].methods)


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
async def test_no_call_gets_in_without_the_token(store: DirectoryStore, method: Any) -> None:
    async with coordinator(store, guard=Guard(TOKEN)) as (_, address):
        for wrong in (None, "f" * 16, TOKEN[:-1], TOKEN + "x"):
            async with Access(wrong).to(address) as (_, stub):
                assert await code_of(stub, method) is grpc.StatusCode.UNAUTHENTICATED
        async with Access(TOKEN).to(address) as (_, stub):
            assert await code_of(stub, method) is not grpc.StatusCode.UNAUTHENTICATED


async def test_tls_and_token_together(store: DirectoryStore, tls: Tls, tmp_path: Path) -> None:
    async with coordinator(store, guard=tls.guard()) as (_, address):
        assert await ping(address, "job", tls.access()) is True
        assert await ping(address, "job", tls.access(None)) is None  # nobody can tell: it refuses us
        assert await ping(address, "job", Access(TOKEN)) is None  # not in plain text
        assert await ping(address, "job", Tls(tmp_path / "other").access()) is None  # another authority
        await write_hint(store, "job", LeaderHint(address, 1, 0))
        with pytest.raises(JobInUseError, match="is running at"):
            await check_free(store, "job", False, 1.0, tls.access())
    async with coordinator(DirectoryStore(tmp_path / "second")) as (_, address):
        assert await ping(address, "job", tls.access()) is None
        assert await ping(address, "job", OPEN) is True


def test_token_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert read_token(None) is None
    with pytest.raises(ConfigError, match="can't read token_file"):
        read_token(file)
    for short in ("short\n", "ünprintable-and-long-enough"):
        with pytest.raises(ConfigError, match="at least 16 printable"):
            read_token(secret(file, short))
    assert read_token(secret(file, TOKEN + "\n")) == TOKEN
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match=r"chmod o-rwx .*token mode=644"):
        read_token(file)
    os.chmod(file, 0o640)
    assert read_token(file) == TOKEN


def spoil(tls: Tls, other: Tls, what: str) -> None:
    changes: dict[str, Callable[[], object]] = {
        "no key": lambda: tls.key.unlink(),
        "another's key": lambda: secret(tls.key, other.key.read_bytes()),
        "no PEM": lambda: tls.cert.write_text("hello"),
        "open key": lambda: os.chmod(tls.key, 0o644),
    }
    changes[what]()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no key", "can't read tls_key_file"),
        ("another's key", "that of the first certificate"),
        ("no PEM", "must be PEM"),
        ("open key", "chmod o-rwx"),
    ],
)
def test_tls_files_that_cannot_work(tls: Tls, tmp_path: Path, what: str, says: str) -> None:
    spoil(tls, Tls(tmp_path / "other"), what)
    with pytest.raises(ConfigError, match=says) as caught:
        read_identity(tls.cert, tls.key)
    assert "PRIVATE" not in str(caught.value)


def test_half_a_pair_and_bad_authorities(tls: Tls, tmp_path: Path) -> None:
    assert read_identity(None, None) == (None, None)
    for half in ((tls.cert, None), (None, tls.key)):
        with pytest.raises(ConfigError, match="both tls_cert_file and tls_key_file"):
            read_identity(*half)
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(ConfigError, match="tls_ca_file must hold certificates"):
        read_authorities(tmp_path / "no.pem")
    assert read_authorities(None) is None


def test_secrets_are_not_printed() -> None:
    assert TOKEN not in repr(Guard(TOKEN, b"c", b"k")) + repr(Access(TOKEN))
