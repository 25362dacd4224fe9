"""`ckptd retire`: let a checkpoint go before retention would."""

from __future__ import annotations

import asyncio

import grpc

from ckptd.cli.asking import access_of, in_words
from ckptd.cli.choosing import Seq, Step, check_choice, choose, named
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.cli.words import records
from ckptd.commit.catalog import catalog
from ckptd.commit.leader import read_hint
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.config import Settings, load_settings
from ckptd.coordinator.leader import check_free, ping
from ckptd.errors import CkptdError
from ckptd.rpc.access import Access
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Store
from ckptd.store.probe import probe

_RETIRE_SECONDS = 30.0


def retire(job: JobId, step: Step = None, seq: Seq = None, store: StoreUrl = None, config: ConfigFile = None) -> None:
    """Offer a checkpoint no more; its objects are deleted after the grace. Exit code 3: the coordinator can't be reached.

    The running coordinator is asked to do it. Where none runs, this takes its office for a moment.
    """
    check_choice(step, seq)
    settings = load_settings(config, {"store": {"url": store}})
    print(asyncio.run(_retire(reading_store(settings), settings, job, step, seq)))


async def _retire(store: Store, settings: Settings, job: str, step: int | None, seq: int | None) -> str:
    log, access = CommitLog(store, job), access_of(settings)
    state = await log.load()
    entry = choose((entry for entry in state.commits.values() if entry.live), step, seq, "live")
    hint = await read_hint(store, job)
    if hint is not None and await ping(hint.address, job, access):
        record = await _ask(access, hint.address, job, entry.n)
    else:
        await probe(store, f"{job}/")
        await check_free(store, job, False, settings.coordinator.lease_seconds, access)
        record = await Committer(log, await take_office(log)).retire(entry.n)
    now = await log.refresh()
    pins = sorted(now.pins.get(entry.n, ()))
    needed = next((one.base_of for one in catalog(now) if one.seq == entry.n), ())
    if pins:
        then = f"it stays readable until {', '.join(pins)} unpin it"
    elif needed:
        then = f"its objects stay as long as they are needed by {records(needed)}; new checkpoints won't refer to them"
    else:
        then = "its objects go after the grace, see `ckptd gc --dry-run`"
    return f"{named(entry)} is retired by record {record}; {then}"


async def _ask(access: Access, address: str, job: str, seq: int) -> int:
    async with access.to(address) as (_, stub):
        try:
            reply = await stub.Retire(pb.RetireRequest(job=job, seq=seq), timeout=_RETIRE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise CkptdError(f"the coordinator at {address} did not retire it: {in_words(error)} seq={seq}") from error
    return int(reply.record)
