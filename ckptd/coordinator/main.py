"""A coordinator's life: check the store, take office, serve, and go (PROTOCOLS 4 and 5)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.commit.patience import Patience
from ckptd.commit.sweep import Collector
from ckptd.coordinator.assembling import assembler
from ckptd.coordinator.confirming import confirmer
from ckptd.coordinator.durable import Assemble, LogWorker
from ckptd.coordinator.engine import Engine
from ckptd.coordinator.leader import announce, announce_end, check_free
from ckptd.coordinator.metrics import CoordinatorMetrics
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.service import CoordinatorService, serve
from ckptd.coordinator.state import Ended
from ckptd.coordinator.tidy import Tidier
from ckptd.errors import CkptdError, ConfigError, OfficeLostError
from ckptd.metrics import serve_metrics
from ckptd.model.canonical import digest
from ckptd.model.ids import check_job
from ckptd.model.keys import log_key
from ckptd.model.records import MAX_RECORD_BYTES
from ckptd.rpc.access import OPEN, UNGUARDED, Access, Guard
from ckptd.store.base import Store, get_small
from ckptd.store.metered import MeteredStore
from ckptd.store.open import check_store
from ckptd.store.probe import probe

OK: Final = 0
STEPPED_DOWN: Final = 3
FAILED: Final = 1
STOP_SECONDS: Final = 2.0
LOG_PATIENCE_SECONDS: Final = 5.0
_log = structlog.get_logger(__name__)


async def run_coordinator(
    store: Store,
    job: str,
    bind: str,
    options: CoordinatorOptions,
    *,
    ready: Callable[[str], None],
    alive: Callable[[], None] = lambda: None,
    advertise: str | None = None,
    guard: Guard = UNGUARDED,
    access: Access = OPEN,
    take_over: bool = False,
    exit_when_complete: bool = False,
    metrics_bind: str | None = None,
    assemble: Assemble | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> int:
    """Be the coordinator of ``job`` until SIGTERM, SIGINT, a lost office, or the job's end with ``exit_when_complete``.

    ``bind`` is host:port; ``guard`` says whom it lets in, ``access`` how it asks an earlier one; ``ready`` gets the address
    that daemons use once it answers; ``alive`` is called at every turn of the loop that decides. Returns the process's exit
    code: 0, 1 when the job was stopped by its failures (and that ends us), or 3 when another coordinator took office. Raises
    ConfigError, JobInUseError, UnsafeStoreError and what the store and the log raise before it serves.
    """
    check_job(job)
    if not check_bind(bind, guard.token) and guard.certificate is None:
        _log.warning("the shared token goes over the network in the clear; set tls_cert_file and tls_key_file", bind=bind)
    metrics = CoordinatorMetrics(job)
    serve_metrics(metrics_bind, metrics.registry)
    store = MeteredStore(store, metrics.store)
    await check_store(store)
    await probe(store, f"{job}/")
    await check_free(store, job, take_over, options.lease_seconds, access, clock)
    log = CommitLog(store, job, Patience(deadline_seconds=LOG_PATIENCE_SECONDS))
    await log.load()
    office = await take_office(log)
    genesis = digest(await get_small(store, log_key(job, 0), MAX_RECORD_BYTES)).encode()
    committer = Committer(log, office)
    worker = LogWorker(log, committer, assemble or assembler(store, job), confirmer(store, job), clock)
    woken = asyncio.Event()
    engine = Engine(office.epoch, options, worker, clock, woken.set, metrics)
    worker.report = engine.log_done
    tidier = Tidier(log, committer, options.retention, engine.pin_in_use, clock, engine.events.add)
    collector = Collector(store, job, log, committer, options.grace_seconds, engine.settled, clock)
    server, port = await serve(CoordinatorService(job, engine, options, genesis, committer.retire), bind, guard)
    host = bind.rpartition(":")[0]
    address = advertise or f"{host}:{port}"
    _log.info("in office", job=job, epoch=office.epoch, address=address, store=store.url)
    engine.events.add("office", f"a coordinator took office at {address}")
    ready(address)
    try:
        code = await _until_over(
            worker.run(),
            tidier.run(),
            collector.run(),
            announce(
                store, job, address, office.epoch, options.lease_seconds, worker.check_office, clock, engine.heard_of_store
            ),
            _decide_forever(engine, woken, options, clock, alive),
            _ended(engine, woken, options, clock, exit_when_complete),
        )
        ended = engine.over
        if code == OK and ended is not None and not ended.failed:
            await announce_end(store, job, address, office.epoch, ended.reason)
        return FAILED if code == OK and exit_when_complete and ended is not None and ended.failed else code
    finally:
        engine.close_links()
        await server.stop(STOP_SECONDS)


def check_bind(bind: str, token: str | None) -> bool:
    """Is it on loopback? Raises ConfigError for a bad address, and for one beyond loopback without a token."""
    host, separator, port = bind.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"bind is host:port, port 0 for any free one; got {bind!r}")
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not token:
        raise ConfigError(f"a coordinator that listens beyond loopback needs a shared token (token_file) bind={bind}")
    return loopback


async def _until_over(*parts: Coroutine[Any, Any, object]) -> int:
    """Run all until one ends or a signal comes; that one's exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread: its owner cancels us
            loop.add_signal_handler(number, stop.set)
            signals.append(number)
    tasks = [asyncio.create_task(part) for part in (*parts, stop.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return OK
    except OfficeLostError as error:
        _log.error("stepping down: another coordinator took office; this one ends", error=str(error))
        return STEPPED_DOWN
    except CkptdError as error:
        _log.error("the coordinator can't go on", error=str(error))
        return FAILED
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _decide_forever(
    engine: Engine, woken: asyncio.Event, options: CoordinatorOptions, clock: Clock, alive: Callable[[], None]
) -> None:
    """Decide after messages, and at least every tick, because time alone changes things."""
    tick = min(options.heartbeat_seconds, options.lease_seconds / 4) / 2
    while True:
        woken.clear()
        engine.step()
        alive()
        waits = [asyncio.ensure_future(woken.wait()), asyncio.ensure_future(clock.sleep(tick))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


async def _ended(
    engine: Engine, woken: asyncio.Event, options: CoordinatorOptions, clock: Clock, exit_when_complete: bool
) -> None:
    """Return once the job is over and what was on its way is stored, or has had its time; never, if not told to."""
    while True:
        if exit_when_complete and _over(engine, options, clock) is not None:
            await clock.sleep(options.linger_seconds)
            if (ended := _over(engine, options, clock)) is not None:  # else somebody has started it again meanwhile
                break
        await clock.sleep(options.heartbeat_seconds / 2)
    _log.info("the job is over; the coordinator ends", reason=ended.reason)


def _over(engine: Engine, options: CoordinatorOptions, clock: Clock) -> Ended | None:
    ended = engine.over
    if ended is None or engine.drained:
        return ended
    return ended if clock.monotonic() - ended.seconds >= options.drain_seconds + options.linger_seconds else None
