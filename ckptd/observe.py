"""Logs: one event a line to stderr, for people (console) or for machines (JSON).

Secrets are kept out twice: nobody passes them (store URLs in messages have no credentials), and what looks like one by its name
is blanked here.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

_SECRET_NAME = re.compile(
    r"secret|password|passwd|token|credential|authorization|(^|_)key$|access_key|storage_options", re.IGNORECASE
)
# Names that look like secrets and are places in the store.
_NO_SECRETS = {"key"}


def setup_logging(style: Literal["console", "json"] = "console", level: str = "info", **bound: str) -> None:
    """Send structlog's events to stderr; ``bound`` (for example ``part="daemon"``) is added to each.

    Call once, at the start of a process. Raises ValueError for an unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"not a log level: {level!r}")
    renderer: Any = structlog.processors.JSONRenderer()
    if style == "console":
        # The default with rich installed shows local variables in tracebacks, which may hold anything.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            blank_secrets,
            *([structlog.processors.format_exc_info] if style == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(**bound)
    # Libraries log through the standard library: warnings only, as botocore's debug lines show signed headers.
    logging.basicConfig(stream=sys.stderr, level=max(number, logging.WARNING), format="%(levelname)s %(name)s %(message)s")


def blank_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of fields whose names say that they are secret (a structlog processor)."""
    for name in event:
        if name not in _NO_SECRETS and _SECRET_NAME.search(name):
            event[name] = "***"
    return event
