"""Azure's URLs, the words of its storage options, where credentials come from, and what Azurite answers to mistakes."""

from __future__ import annotations

import base64
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from chaos.server import free_port
from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, UnavailableError
from ckptd.store import azure, obstore_store
from ckptd.store.open import check_store, open_files, open_store
from tests.servers import AZURE_ACCOUNT, AZURE_KEY, AzuriteServer

OTHER_KEY = base64.b64encode(b"not the key of this server at all").decode()


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's own settings nor the metadata address."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "MSI_", "IDENTITY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", f"http://127.0.0.1:{free_port()}/token")


def token(azurite: AzuriteServer, url: str, rights: str = "rwdlc") -> str:
    return azurite.sas(rights, url.removeprefix("az://"))


def where(azurite: AzuriteServer) -> dict[str, object]:
    """Where, but not who."""
    return {"endpoint": azurite.account_url, "account_name": AZURE_ACCOUNT}


async def refusal(url: str, options: Mapping[str, object], *secrets: str) -> str:
    with pytest.raises(StoreConfigError) as caught:
        await check_store(open_store(url, options))
    said = "".join(traceback.format_exception(caught.value))
    for secret in (AZURE_KEY, *secrets):
        assert secret not in said
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "account", "endpoint"),
    [
        ("az://box/a/b", {"account_name": "mine"}, "mine", None),
        ("abfs://box/a/b/", {"account_name": "mine", "endpoint": "https://blob.lan"}, "mine", "https://blob.lan"),
        ("abfss://box@mine.dfs.core.windows.net/a/b", {}, "mine", "https://mine.blob.core.windows.net"),
        ("az://box@mine.blob.core.usgovcloudapi.net/a/b", {}, "mine", "https://mine.blob.core.usgovcloudapi.net"),
        ("abfss://box@mine.dfs.core.windows.net/a/b", {"endpoint": "https://p.lan"}, "mine", "https://p.lan"),
    ],
)
def test_url_forms(url: str, options: dict[str, object], account: str, endpoint: str | None) -> None:
    store = open_store(url, options)
    config = store._client(0).config  # type: ignore[union-attr]
    assert (config["container_name"], config["account_name"], config.get("endpoint")) == ("box", account, endpoint)
    assert store.url == url.rstrip("/")


@pytest.mark.parametrize("url", ["az://me:hunter2@host/x", "az://Hunter2/x", "abfss://box@hunter2/x", "az://b/x-hunter2"])
def test_what_is_no_container_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreConfigError, match=r"write az|write abfss") as caught:
        open_store(url, {"account_name": "mine"})
    assert "unter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"no_such_option": 1, "connection_string": "x"}, "connection_string, no_such_option"),
        ({"account_key": 5}, "must be text: account_key"),
        ({"account_key": AZURE_KEY, "sas_token": "sv=1&sig=2"}, "only one of"),
        ({"account_key": AZURE_KEY, "anon": True}, "only one of"),
        ({"account_key": "half a key!"}, "whole account_key"),
        ({"sas_token": "halfatoken"}, "whole account_key or sas_token"),
        ({"endpoint": "nonsense"}, "don't suit Azure"),
        ({"credential_type": "magic"}, "don't suit Azure"),
    ],
)
async def test_what_has_no_meaning_is_refused_by_name(options: dict[str, object], named: str) -> None:
    assert named in await refusal("az://box/p", {"account_name": "mine", **options}, "half")


async def test_an_account_must_be_named_and_be_one() -> None:
    assert "AZURE_STORAGE_ACCOUNT_NAME" in await refusal("az://box/p", {})
    assert "two accounts" in await refusal("abfss://box@mine.dfs.core.windows.net/p", {"account_name": "yours"})


async def test_a_missing_container_is_never_an_empty_one(azurite: AzuriteServer) -> None:
    for options in (azurite.storage_options, {**where(azurite), "sas_token": azurite.sas("rwdlc")}):
        assert "container does not exist" in await refusal("az://no-such-container/p", options)
        store = open_store("az://no-such-container/p", options)
        for call in (store.get("log/0"), store.info("log/0"), store.create("log/0", b"x"), store.children("log/")):
            with pytest.raises(StoreConfigError, match="container does not exist"):
                await call
        with pytest.raises(StoreConfigError, match="container does not exist"):
            [info async for info in store.list("log/")]


async def test_wrong_credentials_and_none(azurite: AzuriteServer, azure_url: str) -> None:
    wrong = {**azurite.storage_options, "account_key": OTHER_KEY}
    assert "refuses these credentials" in await refusal(azure_url, wrong, OTHER_KEY)
    assert "refuses these credentials" in await refusal(azure_url, {**where(azurite), "anon": True})
    assert "refuses these credentials" in await refusal(azure_url, {**wrong, "account_name": "nobody"}, OTHER_KEY)


def signature(sas: str) -> str:
    return sas.partition("sig=")[2]


async def test_a_token_in_the_options(azurite: AzuriteServer, azure_url: str) -> None:
    await check_store(open_store(azure_url, {**where(azurite), "sas_token": token(azurite, azure_url)}))
    reading = token(azurite, azure_url, "rl")
    said = await refusal(azure_url, {**where(azurite), "sas_token": reading}, signature(reading))
    assert "may not do this" in said and "AuthorizationPermissionMismatch" in said


async def test_a_token_without_the_right_to_delete(azurite: AzuriteServer, azure_url: str) -> None:
    """A delete is a batch of one: what it answers for the one is its status."""
    keeping = token(azurite, azure_url, "rwlc")
    said = await refusal(azure_url, {**where(azurite), "sas_token": keeping}, signature(keeping))
    assert "verb=delete" in said and "may not do this" in said


async def test_no_token_is_shown_when_nobody_listens() -> None:
    sas = "sv=2022-11-02&sp=r&sig=verysecret"
    options = {"account_name": "a", "endpoint": f"http://127.0.0.1:{free_port()}/a", "sas_token": sas}
    store = open_store("az://box/p", options)
    for call in (store.get("a"), store.put("a", b"x"), store.create("a", b"x"), store.info("a"), store.delete("a")):
        with pytest.raises(UnavailableError) as caught:
            await call
        assert "verysecret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("word", ["ACCOUNT_KEY", "SAS_TOKEN"])
async def test_credentials_of_the_environment(
    azurite: AzuriteServer, azure_url: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    monkeypatch.setenv(f"AZURE_STORAGE_{word}", AZURE_KEY if word == "ACCOUNT_KEY" else token(azurite, azure_url))
    await check_store(open_store(azure_url, {"endpoint": azurite.account_url}))


@pytest.mark.parametrize("word", ["account_key", "sas_token"])
async def test_explicit_credentials_are_used_whatever_the_environment_says(
    azurite: AzuriteServer, azure_url: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    for name, value in {
        "AZURE_STORAGE_ACCOUNT_NAME": "nobody",
        "AZURE_STORAGE_ACCOUNT_KEY": OTHER_KEY,
        "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=2",
        "AZURE_STORAGE_TOKEN": "stale",
        "AZURE_CREDENTIAL_TYPE": "managed_identity",
        "AZURE_SKIP_SIGNATURE": "true",
        "AZURE_CONTAINER_NAME": "another",
        "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1",
        "AZURE_CLIENT_ID": "a",
        "AZURE_CLIENT_SECRET": "b",
        "AZURE_TENANT_ID": "c",
    }.items():
        monkeypatch.setenv(name, value)
    given = AZURE_KEY if word == "account_key" else token(azurite, azure_url)
    await check_store(open_store(azure_url, {**where(azurite), word: given}))


@contextmanager
def identity_service(status: int, answer: Callable[[], dict[str, object]]) -> Iterator[str]:
    """A managed identity's endpoint, in the form that virtual machines have."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer()).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_an_identity_service_that_is_away(azurite: AzuriteServer, azure_url: str) -> None:
    with pytest.raises(UnavailableError, match=r"service that gives credentials fails.*account_key"):
        await open_store(azure_url, where(azurite)).get("a")


@pytest.mark.parametrize(("status", "expected"), [(400, StoreConfigError), (429, UnavailableError), (500, UnavailableError)])
async def test_an_identity_service_that_gives_none(
    azurite: AzuriteServer, azure_url: str, monkeypatch: pytest.MonkeyPatch, status: int, expected: type[Exception]
) -> None:
    with identity_service(status, lambda: {"error": "invalid_request"}) as url:
        monkeypatch.setenv("AZURE_MSI_ENDPOINT", url)
        store = open_store(azure_url, where(azurite))
        for call in (store.get("a"), store.info("a"), store.delete("a")):
            with pytest.raises(expected, match="account_key"):
                await call


async def test_the_identitys_token_goes_to_the_store(
    azurite: AzuriteServer, azure_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azurite takes tokens over TLS only: it must refuse this one, and nobody may repeat it."""
    asked: list[bool] = []

    def answer() -> dict[str, object]:
        asked.append(True)
        return {"access_token": "not-to-be-seen", "expires_in": "3600", "expires_on": "4102444800", "token_type": "Bearer"}

    with identity_service(200, answer) as url:
        monkeypatch.setenv("AZURE_MSI_ENDPOINT", url)
        said = await refusal(azure_url, where(azurite), "not-to-be-seen")
    assert asked and "credentials" in said


async def test_no_federated_token(azurite: AzuriteServer, azure_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLIENT_ID": "a", "TENANT_ID": "b", "FEDERATED_TOKEN_FILE": "/no/such/file"}.items():
        monkeypatch.setenv(f"AZURE_{name}", value)
    assert "no credentials for Azure" in await refusal(azure_url, where(azurite))


async def test_files_of_others_are_read_whatever_their_names(azurite: AzuriteServer, azure_url: str) -> None:
    store = open_files(f"{azure_url}/their files", azurite.storage_options)
    for name in ("a b.pt", "ä%20ö.bin", "x/.metadata", "q?a=b#c+d~(1)"):
        await store.put(name, name.encode())
        assert azurite.read(azure_url.removeprefix("az://"), f"their files/{name}") == name.encode()
        assert await store.get(name) == name.encode()
        assert (await store.info(name)).size_bytes == len(name.encode())
    with pytest.raises(NotFoundError):
        await store.info("a%20b.pt")


async def test_a_frozen_server_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server = AzuriteServer()
    try:
        server.start()
        url = server.make_container("box")
        await open_store(url, server.storage_options).create("a", b"x")
        monkeypatch.setattr(obstore_store, "SLOWEST_BYTES_PER_SECOND", 2**30)
        monkeypatch.setattr(azure, "CONNECT_TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(azure, "READ_TIMEOUT_SECONDS", 0.5)
        store = open_store(url, server.storage_options)
        server.freeze()
        for call in (store.get("a"), store.create("a", b"x"), store.put("c", bytes(32 * 2**20))):
            with pytest.raises(UnavailableError):
                await call
        server.thaw()
        with pytest.raises(AlreadyExistsError):
            await open_store(url, server.storage_options).create("a", b"x")
    finally:
        server.close()
