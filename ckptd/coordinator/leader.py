"""May we start as this job's coordinator? (PROTOCOLS 4.4 and 4.10)

Safety does not hang on this: two coordinators at once can't both commit, because the later EPOCH ends the earlier office. It is
about peace. Two starters with one job id would depose each other for ever, and each would regroup the other's workers.

So a starter reads the LEADER hint and asks the address in it. Pinging first is our addition to PROTOCOLS: a restart is quick.

- An answer for this job: it is in use. We refuse.
- Connection refused, or an answer for another job: the machine is there and our predecessor is not; nobody refreshes that hint
  any more. We take over at once. This is the usual restart on the same machine.
- No answer (other network, host down, firewall): it may live where we can't reach it, but it reaches the store. We watch the
  hint for one lease; if it changes, somebody is alive, and we refuse unless told ``take_over``.

A coordinator that is stopped answers late, and its hint stands still: we take over, and when it goes on it finds our EPOCH and
steps down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.commit.leader import LeaderHint, read_hint, write_hint
from ckptd.errors import JobInUseError, StoreError
from ckptd.rpc.access import OPEN, Access
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Store

PING_SECONDS = 3.0
END_SECONDS = 5.0
_log = structlog.get_logger(__name__)


async def check_free(
    store: Store, job: str, take_over: bool, lease_seconds: float, access: Access = OPEN, clock: Clock = SYSTEM_CLOCK
) -> None:
    """Return when nobody seems to hold the job's office. Raises JobInUseError, and what the store raises.

    ``lease_seconds`` is how long an unreachable hint is watched.
    """
    hint = await read_hint(store, job)
    if hint is None or take_over:
        return
    answer = await ping(hint.address, job, access)
    if answer is True:
        raise JobInUseError(
            f"a coordinator of job {job!r} is running at {hint.address}; stop it, use another job id, or say --take-over"
            f" epoch={hint.epoch}"
        )
    if answer is False:
        _log.info("the last coordinator is gone", job=job, address=hint.address, epoch=hint.epoch)
        return
    _log.info("the last coordinator does not answer; watching its hint", job=job, address=hint.address, seconds=lease_seconds)
    await clock.sleep(lease_seconds)
    if await read_hint(store, job) != hint:
        raise JobInUseError(
            f"a coordinator of job {job!r} is alive, though it can't be reached from here at {hint.address}; stop it, use"
            f" another job id, or say --take-over epoch={hint.epoch}"
        )


async def ping(address: str, job: str, access: Access = OPEN) -> bool | None:
    """Does a coordinator of ``job`` answer at ``address``? True, False (certainly not), or None when nobody can tell."""
    async with access.to(address) as (_, stub):
        try:
            reply = await stub.Ping(pb.PingRequest(job=job), timeout=PING_SECONDS)
        except grpc.aio.AioRpcError as error:
            refused = "connection refused" in f"{error.details()} {error.debug_error_string()}".lower()
            return False if error.code() == grpc.StatusCode.UNAVAILABLE and refused else None
    return bool(reply.job == job)


async def announce_end(store: Store, job: str, address: str, epoch: int, why: str) -> None:
    """Say in the hint that nobody answers any more because the job is done. For people: a failure is only logged."""
    try:
        async with asyncio.timeout(END_SECONDS):
            await write_hint(store, job, LeaderHint(address, epoch, 0, why))
    except (StoreError, TimeoutError) as error:
        _log.warning("the job's end isn't announced; `ckptd status` will miss the coordinator", error=str(error))


async def announce(
    store: Store,
    job: str,
    address: str,
    epoch: int,
    lease_seconds: float,
    check_office: Callable[[], Awaitable[None]],
    clock: Clock = SYSTEM_CLOCK,
    heard: Callable[[str | None], None] = lambda _trouble: None,
) -> None:
    """Put the hint every third of a lease, until cancelled. A store that is away makes it stale, which harms nobody.

    ``heard`` gets what is wrong with the store, or None, after each try: nobody else writes to it between two snapshots.

    A hint of a later epoch means that we may have been deposed while we had nothing to write: ``check_office`` asks the log and
    raises OfficeLostError, before we overwrite our successor's address.
    """
    counter = 0
    while True:
        trouble: str | None = None
        try:
            found = await read_hint(store, job)
            if found is not None and found.epoch > epoch:
                await check_office()
            await write_hint(store, job, LeaderHint(address, epoch, counter))
        except StoreError as error:  # also expired credentials: somebody will renew them
            trouble = str(error)
        heard(trouble)
        counter += 1
        await clock.sleep(lease_seconds / 3)
