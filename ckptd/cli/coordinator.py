"""`ckptd coordinator`: decides for one job who trains, what is restored, and what is committed."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import fields
from typing import Annotated

import typer

from ckptd.cli.options import ConfigFile, ExitWithParent, JobId, StoreUrl, follow_parent, log_style, require_store
from ckptd.config import load_settings
from ckptd.coordinator.main import run_coordinator
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.notify import notifier
from ckptd.observe import setup_logging
from ckptd.rpc.access import Access, Guard, read_authorities, read_identity, read_token


def coordinator(
    job: JobId,
    store: StoreUrl = None,
    config: ConfigFile = None,
    bind: Annotated[str | None, typer.Option(help="host:port; beyond loopback a token_file is needed")] = None,
    advertise: Annotated[str | None, typer.Option(help="host:port that daemons are told; default: as bound")] = None,
    every: Annotated[int | None, typer.Option(help="a snapshot every so many steps")] = None,
    take_over: Annotated[bool, typer.Option(help="start although another coordinator seems to be alive")] = False,
    exit_when_complete: Annotated[bool, typer.Option(help="end when the job has")] = False,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Run the coordinator of one job. Exit code 3: the job id is in use, or another coordinator took over."""
    if exit_with_parent:
        follow_parent()
    settings = load_settings(
        config, {"store": {"url": store}, "coordinator": {"bind": bind, "advertise": advertise, "every_steps": every}}
    )
    chosen = settings.coordinator
    setup_logging(log_style(), part="coordinator")
    options = CoordinatorOptions(
        **{field.name: getattr(chosen, field.name) for field in fields(CoordinatorOptions) if hasattr(chosen, field.name)}
    )
    guard = Guard(read_token(chosen.token_file), *read_identity(chosen.tls_cert_file, chosen.tls_key_file))
    manager = notifier(os.environ)

    def ready(address: str) -> None:
        print(f"ckptd coordinator ready address={address}", flush=True)
        manager.ready()
        manager.status(f"in office for job {job}, at {address}")

    code = asyncio.run(
        run_coordinator(
            require_store(settings),
            job,
            chosen.bind,
            options,
            ready=ready,
            alive=manager.alive,
            advertise=chosen.advertise,
            guard=guard,
            access=Access(guard.token, read_authorities(settings.daemon.tls_ca_file)),
            take_over=take_over,
            exit_when_complete=exit_when_complete,
            metrics_bind=chosen.metrics_bind,
        )
    )
    sys.exit(code)
