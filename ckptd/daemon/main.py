"""The daemon process: set up what all jobs share, serve, and end in order."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from ckptd.clock import SYSTEM_CLOCK
from ckptd.codec.frames import BUILD
from ckptd.config import Settings
from ckptd.daemon.arenas import ArenaHost
from ckptd.daemon.metrics import DaemonMetrics
from ckptd.daemon.node import Node, Watch
from ckptd.daemon.server import Server, listen
from ckptd.metrics import serve_metrics
from ckptd.notify import feed, kept_descriptors, notifier
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.meter import Meter
from ckptd.pipeline.threads import codec_pool
from ckptd.pipeline.write import WriteOptions
from ckptd.rpc.access import Access, read_authorities, read_token
from ckptd.store.base import Store
from ckptd.store.limit import LimitedStore
from ckptd.store.metered import MeteredStore
from ckptd.store.open import check_store
from ckptd.store.retry import RetryingStore, RetrySettings
from ckptd.troubles import Troubles
from ckptd_client.wire import default_socket

_FETCH_BYTES: Final = 128 << 20  # 16 ranges: as much as keeps a fast link busy while others are decoded
_log = structlog.get_logger(__name__)


async def run_daemon(bare: Store, settings: Settings, ready: Callable[[Path], None], *, has_successor: bool = True) -> None:
    """Serve on the store ``bare`` until SIGTERM or SIGINT, then finish uploads within `drain_seconds`.

    What an earlier daemon left in the arenas is taken over first; what is not done at the end is left for the next one, unless
    there won't be any. Raises ConfigError (socket, arena directory, settings), StoreConfigError (URL, bucket, credentials).
    """
    daemon = settings.daemon
    manager, kept = notifier(os.environ), kept_descriptors(os.environ)
    metrics = DaemonMetrics()
    bare = MeteredStore(bare, metrics.store)
    await check_store(bare)
    path = daemon.socket or default_socket()
    sock = listen(path)
    try:
        arenas = ArenaHost(
            settings.arena.directory or Path(f"/dev/shm/ckptd-{os.getuid()}-{daemon.node}"), settings.arena.limit_bytes, manager
        )
        serve_metrics(daemon.metrics_bind, metrics.registry)
        troubles = Troubles()
        limited = LimitedStore(bare, settings.store.concurrency, settings.store.upload_bytes_per_second)
        node = Node(
            name=daemon.node,
            incarnation=secrets.token_hex(8),
            settings=settings,
            store=RetryingStore(bare, RetrySettings(deadline_seconds=settings.store.request_seconds), troubles=troubles),
            upload_store=RetryingStore(limited, RetrySettings(deadline_seconds=None), troubles=troubles),
            read_store=RetryingStore(limited, RetrySettings(deadline_seconds=settings.store.read_seconds), troubles=troubles),
            arenas=arenas,
            pool=codec_pool(daemon.cpu_threads, daemon.nice),
            fetch_budget=ByteBudget(min(_FETCH_BYTES, daemon.memory_bytes)),
            segment_numbers=itertools.count(),
            write_options=WriteOptions(
                frame_bytes=daemon.frame_bytes,
                segment_bytes=daemon.segment_bytes,
                codec=daemon.codec,
                memory_bytes=daemon.memory_bytes,
                concurrency=settings.store.concurrency,
            ),
            meter=Meter(settings.store.concurrency, daemon.cpu_threads),
            access=Access(read_token(daemon.token_file), read_authorities(daemon.tls_ca_file)),
            watch=Watch(),
            troubles=troubles,
            started=SYSTEM_CLOCK.monotonic(),
            metrics=metrics,
        )
        server = Server(node, sock)
        server.recover(arenas.recover(kept))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        _log.info("daemon_ready", node=node.name, socket=str(path), store=bare.url, codec=BUILD)
        ready(path)
        manager.ready()
        serving = node.watch.spawn(server.serve())
        tidying = node.watch.spawn(server.forget_deserted())
        feeding = node.watch.spawn(feed(manager, asyncio.sleep, lambda: _threads_turn(node.pool)))
        measuring = node.watch.spawn(server.measure())
        node.watch.failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
        _log.info("daemon_stopping", node=node.name)
        manager.stopping()
        serving.cancel()
        tidying.cancel()
        measuring.cancel()
        await server.close()
        feeding.cancel()
        if node.watch.failed.done():
            await node.watch.failed  # raises what failed
        node.pool.shutdown()
        arenas.close(remove=not has_successor)
        await bare.close()
    finally:
        sock.close()
        path.unlink(missing_ok=True)


async def _threads_turn(pool: ThreadPoolExecutor) -> None:
    """Returns when the threads that encode, and those that do all else, have taken a piece of work."""
    loop = asyncio.get_running_loop()
    await asyncio.gather(loop.run_in_executor(pool, _nothing), loop.run_in_executor(None, _nothing))


def _nothing() -> None:
    pass
