"""Serving Prometheus metrics over HTTP. No secrets are in them, and no names that could grow without bound."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from ckptd.errors import ConfigError

_log = structlog.get_logger(__name__)


def serve_metrics(bind: str | None, registry: CollectorRegistry) -> None:
    """Serve ``registry`` at host:port (port 0: any free one; the log says which) in a thread that ends with the process.

    None: not at all. Raises ConfigError for an address that can't be.
    """
    if bind is None:
        return
    host, separator, port = bind.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics_bind is host:port, port 0 for any free one; got {bind!r}")
    try:
        server, _ = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    except OSError as error:
        raise ConfigError(
            f"can't serve metrics there; choose another metrics_bind metrics_bind={bind} error={error}"
        ) from error
    _log.info("metrics", address=f"http://{host}:{server.server_port}/metrics")
