"""A proxy that knows S3: it passes signed requests on unchanged, and does wrong, by seed, what it was told to.

    client ──► S3Proxy ──► MinIO (or a toxiproxy before it)

The Host header goes on as it came, so signatures hold. Bodies are taken whole (at most BODY_BYTES), so that a fault can come
before the store has seen a request, after it has carried it out, or in the middle of the answer.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

BODY_BYTES: Final = 128 << 20
UPSTREAM_SECONDS: Final = 60.0
START_SECONDS: Final = 20.0

Kind = Literal["503", "500", "409", "lost", "cut", "flip", "expired", "slow"]
Verb = Literal["PUT", "CREATE", "GET", "HEAD", "LIST", "DELETE"]
READS: Final[frozenset[Verb]] = frozenset({"GET", "HEAD", "LIST"})
WRITES: Final[frozenset[Verb]] = frozenset({"PUT", "CREATE"})

_ERRORS: Final = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "409": (409, "ConditionalRequestConflict", "The conditional request cannot succeed due to a conflicting operation."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}
_HOPS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})


@dataclass(slots=True)
class Fault:
    """What goes wrong with which requests.

    ``kind``: an error answer (503, 500, 409, expired) in the store's stead; "lost": carried out, then the connection is closed
    without an answer; "cut": the answer's body ends half way; "flip": one bit of it is wrong; "slow": ``seconds`` pass first.
    ``key`` is searched in the object's key (or a listing's prefix); ``chance`` of each match; at most ``limit`` times.
    """

    kind: Kind
    verbs: frozenset[Verb]
    key: str = ""
    chance: float = 1.0
    limit: int = 1 << 30
    seconds: float = 0.0
    done: int = 0
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        self._pattern = re.compile(self.key)

    def hits(self, verb: Verb, key: str, rng: random.Random) -> bool:
        """Whether it happens to this request; counted if so."""
        if verb not in self.verbs or self.done >= self.limit or not self._pattern.search(key) or rng.random() >= self.chance:
            return False
        self.done += 1
        return True


class S3Proxy:
    """Serves on loopback, in a thread with an event loop of its own."""

    def __init__(self, upstream_port: int, bucket: str, seed: int) -> None:
        self._upstream = f"http://127.0.0.1:{upstream_port}"
        self._bucket = f"/{bucket}/"
        self._rng = random.Random(f"s3proxy {seed}")
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._session: ClientSession | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3proxy", daemon=True)
        self.port = 0
        self.counts: Counter[str] = Counter()
        """What was done, "kind verb" → times."""
        self.under_way: list[tuple[Verb, str]] = []
        """Requests that the proxy holds now; read it as a copy."""
        self.stored: dict[str, set[int]] = {}
        """Key → hashes of the bodies that were PUT there with success."""

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_SECONDS)

    def close(self) -> None:
        """End it."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_SECONDS)

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[Fault]:
        """Have it for a while."""
        self._faults = [*self._faults, fault]
        try:
            yield fault
        finally:
            self._faults = [one for one in self._faults if one is not fault]

    async def _start(self) -> None:
        connector = TCPConnector(limit=0)
        self._session = ClientSession(connector=connector, auto_decompress=False, timeout=ClientTimeout(UPSTREAM_SECONDS))
        app = web.Application(client_max_size=BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        assert self._runner is not None and self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        verb, key = self._named(request)
        body = await request.read()
        entry = (verb, key)
        self.under_way.append(entry)
        try:
            return await self._serve(request, verb, key, body)
        finally:
            self.under_way.remove(entry)

    async def _serve(self, request: web.Request, verb: Verb, key: str, body: bytes) -> web.StreamResponse:
        struck = [fault for fault in self._faults if fault.hits(verb, key, self._rng)]
        self.counts.update(f"{fault.kind} {verb}" for fault in struck)
        for fault in struck:
            if fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
        struck = [fault for fault in struck if fault.kind != "slow"]
        kind = struck[0].kind if struck else None
        if kind in _ERRORS:
            status, code, message = _ERRORS[kind]
            text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            return web.Response(status=status, text="" if verb == "HEAD" else text, content_type="application/xml")
        try:
            status, headers, answer = await self._pass_on(request, body)
        except (ClientError, TimeoutError, OSError):
            return _hang_up(request)
        if verb in WRITES and status == 200:
            self.stored.setdefault(key, set()).add(hash(body))
        if kind == "lost":
            return _hang_up(request)
        if status in (200, 206) and answer and kind == "flip":
            at = self._rng.randrange(len(answer))
            answer = answer[:at] + bytes([answer[at] ^ 1 << self._rng.randrange(8)]) + answer[at + 1 :]
        if status in (200, 206) and answer and kind == "cut":
            return await _cut(request, status, headers, answer)
        if verb == "HEAD":
            length = int(headers.pop("x-length", "0"))
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = length
            await response.prepare(request)
            return response
        return web.Response(status=status, headers=headers, body=answer)

    async def _pass_on(self, request: web.Request, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        assert self._session is not None
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in _HOPS)
        url = URL(self._upstream + request.raw_path, encoded=True)
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        sent = self._session.request(request.method, url, headers=headers, data=body or None, skip_auto_headers=skipped)
        async with sent as answer:
            back = CIMultiDict((name, value) for name, value in answer.headers.items() if name.lower() not in _HOPS)
            if request.method == "HEAD":
                back["x-length"] = answer.headers.get("Content-Length", "0")
            return answer.status, back, await answer.read()

    def _named(self, request: web.Request) -> tuple[Verb, str]:
        path = request.path
        if request.method == "GET" and ("list-type" in request.query or not path.startswith(self._bucket)):
            return "LIST", request.query.get("prefix", "")
        key = path.removeprefix(self._bucket)
        if request.method == "PUT":
            return ("CREATE" if "If-None-Match" in request.headers else "PUT"), key
        return ("HEAD" if request.method == "HEAD" else "DELETE" if request.method in ("DELETE", "POST") else "GET"), key


def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _cut(request: web.Request, status: int, headers: CIMultiDict[str], answer: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(answer)
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
