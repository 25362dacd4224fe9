"""The figures, in the order of `make bench`. A figure is registered by its line here: the name of its file."""

from __future__ import annotations

FIGURES = (
    "stall",
    "stall_sync",
    "stall_small",
    "overhead",
    "drain",
    "durable",
    "stored",
    "codec",
    "incremental",
    "plan",
    "restore",
    "reshard",
    "memory",
    "requests",
    "scaling",
    "recovery",
)
