"""Is a checkpoint really damaged that a node could not restore? Looked at from here before it is quarantined for good.

A quarantine can't be taken back, and what is quarantined may be collected. A node without its mount, or with bad memory, calls
every checkpoint damaged, one after the other: its word alone must not cost the job all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import numpy as np

from ckptd.commit.state import Entry
from ckptd.model.index import Index
from ckptd.restore.verify import verify_checkpoint
from ckptd.store.base import Store

CONCURRENCY: Final = 4

# (the commit, a node's words) → what is wrong with it, empty when it is whole
Confirm = Callable[[Entry, str], Awaitable[str]]


def confirmer(store: Store, job: str) -> Confirm:
    """Checks manifest, layout, index and all segments' sizes, and decodes the frames of those segments that the words name.

    Raises what the store raises: a store that is away shows nothing.
    """

    async def do(entry: Entry, words: str) -> str:
        def named(index: Index, keys: Sequence[str]) -> Iterator[int]:
            rows = [
                row for row, key in enumerate(keys) if key in words
            ]  # our own keys are looked for, none is taken from there
            yield from np.flatnonzero(np.isin(index.frames["segment"], rows)).tolist()

        report = await verify_checkpoint(store, job, entry, CONCURRENCY, named, decoded=True)
        return "; ".join(f"{bad.key}: {bad.problem}" for bad in report.bad[:3])

    return do
