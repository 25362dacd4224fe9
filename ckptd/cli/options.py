"""Options that several verbs share."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ckptd.config import Settings
from ckptd.errors import ConfigError
from ckptd.store.base import Store
from ckptd.store.open import open_store
from ckptd.store.retry import RetryingStore, RetrySettings

ConfigFile = Annotated[Path | None, typer.Option("--config", help="settings file (TOML); else $CKPTD_CONFIG")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="s3://bucket/prefix, gs://…, az://…, any fsspec URL, or a directory")
]
JobId = Annotated[str, typer.Option("--job", envvar="CKPTD_JOB", help="id of the training run")]
ExitWithParent = Annotated[bool, typer.Option("--exit-with-parent", help="end when the process that started this one ends")]

_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies; if it died before we asked, end now."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        raise ConfigError("--exit-with-parent: the parent process is gone already")


def log_style() -> Literal["console", "json"]:
    """For people where people look, for machines elsewhere."""
    return "console" if sys.stderr.isatty() else "json"


def require_store(settings: Settings) -> Store:
    """The store of the settings. Raises ConfigError when none is named, StoreConfigError for one that can't be."""
    if not settings.store.url:
        raise ConfigError("no store is given; say --store URL, or set store.url in the settings file or CKPTD_STORE__URL")
    return open_store(settings.store.url, settings.store.storage_options)


def reading_store(settings: Settings) -> Store:
    """The store for a tool that reads: small requests are tried again for a while."""
    return RetryingStore(require_store(settings), RetrySettings(deadline_seconds=settings.store.request_seconds))
