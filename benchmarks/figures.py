"""The figures, in the order of `make bench`. A figure is registered by its line here: the name of its file."""

from __future__ import annotations

FIGURES = (
    "stall",
    "stall_sync",
    "overhead",
    "durable",
    "drain",
    "stored",
    "codec",
    "incremental",
    "memory",
    "requests",
    "recovery",
)
