"""Asking whoever may know how a job is: this node's daemon, the job's coordinator, and its commit log. Each may be away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from ckptd.cli.options import require_store
from ckptd.commit.catalog import CatalogEntry, catalog
from ckptd.commit.leader import LeaderHint, read_hint
from ckptd.commit.log import CommitLog
from ckptd.commit.patience import Patience
from ckptd.commit.state import State
from ckptd.config import Settings
from ckptd.errors import CkptdError, CorruptError, NotFoundError, ProtocolError, UnavailableError
from ckptd.model.keys import log_key, manifest_key
from ckptd.model.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from ckptd.rpc.access import Access, read_authorities, read_token
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Store, get_small
from ckptd_client.messages.hello import PROTOCOL_VERSION, StatusAsk, StatusInfo
from ckptd_client.wire import dial

T = TypeVar("T")
DAEMON_SECONDS: Final = 3.0
COORDINATOR_SECONDS: Final = 5.0
STORE_SECONDS: Final = 10.0
_DAEMON_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class LogView:
    """What the commit log says. ``newest`` is what a restore would take; its age is by the store's clock and ours."""

    store: str
    state: State
    newest: CatalogEntry | None
    age_seconds: float
    manifest: Manifest | None


def ask_daemon(path: Path) -> pb.DaemonStatus:
    """Blocks for DAEMON_SECONDS at most. Raises DaemonUnavailableError, ProtocolError."""
    connection = dial(path, DAEMON_SECONDS)
    watch = threading.Timer(DAEMON_SECONDS, connection.close)  # wakes receive(), which has no timeout
    watch.daemon = True
    watch.start()
    try:
        connection.send(StatusAsk(PROTOCOL_VERSION))
        reply, _ = connection.receive()
    finally:
        watch.cancel()
        connection.close()
    if not isinstance(reply, StatusInfo) or len(reply.body) > _DAEMON_BYTES:
        raise ProtocolError(f"the daemon answered StatusAsk with {type(reply).__name__}")
    return pb.DaemonStatus.FromString(reply.body)


def access_of(settings: Settings) -> Access:
    """How the coordinator is called: as the daemon of these settings would. Raises ConfigError."""
    return Access(read_token(settings.daemon.token_file), read_authorities(settings.daemon.tls_ca_file))


async def ask_coordinator(access: Access, address: str, job: str) -> pb.StatusReply:
    """Raises UnavailableError saying why there is no answer."""
    async with access.to(address) as (_, stub):
        try:
            reply: pb.StatusReply = await stub.Status(pb.StatusRequest(job=job), timeout=COORDINATOR_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"no answer from the coordinator at {address}: {in_words(error)}") from error
    return reply


def in_words(error: grpc.aio.AioRpcError) -> str:
    """What a failed call says to people."""
    details = str(error.details() or "")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it is silent for {COORDINATOR_SECONDS:g} s"
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return "nobody listens there" if "refused" in details.lower() else "it can't be reached"
    return details or error.code().name


def open_log_store(settings: Settings) -> Store | None:
    """The store of the settings, None when none is named. Raises StoreConfigError for one that can't be."""
    return require_store(settings) if settings.store.url else None


async def find_coordinator(store: Store, job: str) -> LeaderHint | None:
    """What its coordinator has announced. Raises store errors, also after STORE_SECONDS of silence."""
    return await _bounded(read_hint(store, job), store)


async def read_log(store: Store, job: str) -> LogView:
    """Raises what the log raises, and UnavailableError after STORE_SECONDS."""
    return await _bounded(_read_log(store, job), store)


async def _read_log(store: Store, job: str) -> LogView:
    state = await CommitLog(store, job, Patience(deadline_seconds=STORE_SECONDS)).load()
    newest = next((entry for entry in catalog(state) if entry.newest), None)
    if newest is None:
        return LogView(store.url, state, None, 0.0, None)
    age_seconds = max(0.0, time.time() - (await store.info(log_key(job, newest.seq))).modified_seconds)
    return LogView(store.url, state, newest, age_seconds, await read_manifest(store, job, newest))


async def read_manifest(store: Store, job: str, entry: CatalogEntry) -> Manifest | None:
    """None when it is gone, as that of a retired commit may be, or damaged."""
    try:
        return decode_manifest(await get_small(store, manifest_key(job, entry.manifest), MAX_MANIFEST_BYTES))
    except (NotFoundError, CorruptError):
        return None


async def _bounded(work: Coroutine[Any, Any, T], store: Store) -> T:
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await work
    except TimeoutError:
        raise UnavailableError(f"the store doesn't answer within {STORE_SECONDS:g} s store={store.url}") from None


def words_of(error: CkptdError) -> str:
    """One line."""
    return " ".join(str(error).split())
