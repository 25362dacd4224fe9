"""`ckptd unpin`: the end of a pin."""

from __future__ import annotations

import asyncio

from ckptd.cli.choosing import Seq, Step, Who, check_choice, choose, holder, named
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.commit.log import CommitLog
from ckptd.commit.office import unpin as write_unpin
from ckptd.config import load_settings
from ckptd.errors import CkptdError
from ckptd.store.base import Store


def unpin(
    job: JobId, step: Step = None, seq: Seq = None, who: Who = None, store: StoreUrl = None, config: ConfigFile = None
) -> None:
    """End a pin: retention decides about the checkpoint again. Needs no coordinator."""
    check_choice(step, seq)
    settings = load_settings(config, {"store": {"url": store}})
    print(asyncio.run(_unpin(reading_store(settings), job, step, seq, holder(who))))


async def _unpin(store: Store, job: str, step: int | None, seq: int | None, who: str) -> str:
    log = CommitLog(store, job)
    state = await log.load()
    entry = choose((entry for entry in state.commits.values() if entry.n in state.pins), step, seq, "pinned")
    holders = state.pins[entry.n]
    if who not in holders:
        raise CkptdError(
            f"{named(entry)} is not pinned by {who}; say with --who whose pin to end: {', '.join(sorted(holders))}"
        )
    await write_unpin(log, entry.n, who)
    others = sorted(holders - {who})
    return f"{named(entry)} is no longer pinned by {who}" + (f", but still by {', '.join(others)}" if others else "")
