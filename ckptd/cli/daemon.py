"""`ckptd daemon`: the sidecar of one node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ckptd.cli.options import ConfigFile, ExitWithParent, StoreUrl, follow_parent, log_style, require_store
from ckptd.config import load_settings
from ckptd.daemon.main import run_daemon
from ckptd.daemon.memory import keep_freed_memory
from ckptd.observe import setup_logging


def daemon(
    store: StoreUrl = None,
    config: ConfigFile = None,
    node: Annotated[str | None, typer.Option(help="this node's name; default: host name")] = None,
    socket: Annotated[Path | None, typer.Option(help="unix socket; default: $CKPTD_SOCKET, else the runtime directory")] = None,
    coordinator: Annotated[str | None, typer.Option(help="host:port; default: as announced in the store")] = None,
    arena_directory: Annotated[Path | None, typer.Option(help="directory on tmpfs for shared memory")] = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Run the sidecar that streams this node's checkpoints to the object store."""
    keep_freed_memory()
    if exit_with_parent:
        follow_parent()
    settings = load_settings(
        config,
        {
            "store": {"url": store},
            "daemon": {"node": node, "socket": socket, "coordinator": coordinator},
            "arena": {"directory": arena_directory},
        },
    )
    setup_logging(log_style(), part="daemon")
    store_ = require_store(settings)
    asyncio.run(
        run_daemon(
            store_,
            settings,
            ready=lambda path: print(f"ckptd daemon ready socket={path}", flush=True),
            has_successor=not exit_with_parent,
        )
    )
