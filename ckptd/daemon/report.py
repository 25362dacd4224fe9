"""The daemon as people want to see it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from ckptd.daemon.node import Node
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.troubles import Trouble

if TYPE_CHECKING:
    from ckptd.daemon.job import Job

REPORTED: Final = 16


def daemon_status(node: Node, jobs: Iterable[Job]) -> bytes:
    """The body of StatusInfo: a ckptd.v1.DaemonStatus."""
    status = pb.DaemonStatus(
        node=node.name,
        incarnation=node.incarnation,
        version=version("ckptd"),
        seconds=time.monotonic() - node.started,
        store=node.store.url,
        jobs=[job.status() for job in jobs],
        troubles=troubles_to_pb(node.troubles.of("")),
        arena_bytes=node.arenas.used_bytes,
        arena_limit_bytes=node.settings.arena.limit_bytes,
    )
    return status.SerializeToString()


def troubles_to_pb(troubles: Iterable[Trouble]) -> list[pb.Trouble]:
    """The oldest ones, for a message."""
    return [
        pb.Trouble(topic=trouble.topic, what=trouble.what, since_unix_seconds=trouble.since, times=trouble.times)
        for trouble in list(troubles)[:REPORTED]
    ]
