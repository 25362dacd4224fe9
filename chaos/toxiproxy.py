"""A toxiproxy of one's own, on the way to one server: latency, little bandwidth, resets, silence."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from chaos.server import HttpServer, free_port
from chaos.tools import binary

_PROXY: Final = "store"

TOXICS: Final[Mapping[str, Mapping[str, int]]] = {
    "latency": {"latency": 150, "jitter": 50},  # ms, of each answer
    "bandwidth": {"rate": 400},  # KB/s, of each connection
    "reset_peer": {"timeout": 20},  # ms until a connection is reset
    "timeout": {"timeout": 0},  # connections are taken, and nothing comes back
}
"""Toxic → its attributes."""


class Toxiproxy(HttpServer):
    """Listens on `proxied_port` and passes all on to ``upstream_port``, with or without toxics."""

    name = "toxiproxy"
    ready_path = "/version"

    def __init__(self, upstream_port: int) -> None:
        super().__init__()
        self.proxied_port = free_port()
        self._upstream_port = upstream_port

    def command(self) -> list[str]:
        return [str(binary("toxiproxy")), "-host", "127.0.0.1", "-port", str(self.port)]

    def start(self) -> None:
        """Start it, with one proxy and no toxics."""
        super().start()
        addresses = {"listen": f"127.0.0.1:{self.proxied_port}", "upstream": f"127.0.0.1:{self._upstream_port}"}
        self._call("POST", "/proxies", {"name": _PROXY, **addresses, "enabled": True})

    @contextmanager
    def toxic(self, kind: str) -> Iterator[None]:
        """Have one of TOXICS on every connection for a while."""
        body = {"name": kind, "type": kind, "stream": "downstream", "toxicity": 1.0, "attributes": dict(TOXICS[kind])}
        self._call("POST", f"/proxies/{_PROXY}/toxics", body)
        try:
            yield
        finally:
            self._call("DELETE", f"/proxies/{_PROXY}/toxics/{kind}")

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise RuntimeError(f"toxiproxy refused: {answer.status} {answer.read()!r:.200}")
        finally:
            connection.close()
