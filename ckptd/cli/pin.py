"""`ckptd pin`: keep a checkpoint, whatever retention says."""

from __future__ import annotations

import asyncio

from ckptd.cli.choosing import Seq, Step, Who, check_choice, choose, holder, named
from ckptd.cli.options import ConfigFile, JobId, StoreUrl, reading_store
from ckptd.commit.log import CommitLog
from ckptd.commit.office import pin as write_pin
from ckptd.config import load_settings
from ckptd.store.base import Store


def pin(
    job: JobId, step: Step = None, seq: Seq = None, who: Who = None, store: StoreUrl = None, config: ConfigFile = None
) -> None:
    """Keep a checkpoint until it is unpinned. Needs no coordinator."""
    check_choice(step, seq)
    settings = load_settings(config, {"store": {"url": store}})
    print(asyncio.run(_pin(reading_store(settings), job, step, seq, holder(who))))


async def _pin(store: Store, job: str, step: int | None, seq: int | None, who: str) -> str:
    log = CommitLog(store, job)
    state = await log.load()
    entry = choose((entry for entry in state.commits.values() if entry.live), step, seq, "live")
    await write_pin(log, entry.n, who)
    return f"{named(entry)} is pinned by {who}"
