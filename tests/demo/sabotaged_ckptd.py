"""`ckptd` with a daemon that restores something else than it was told: sabotaged_ckptd.py older|shard …

The rest of the command line is ckptd's own. `older`: the commit before the one that the coordinator named, and nobody is told.
`shard`: the two halves of one parameter, which two ranks had saved, in each other's place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ckptd.cli import main
from ckptd.commit.catalog import catalog
from ckptd.commit.log import CommitLog
from ckptd.daemon import restores, together
from ckptd.model.index import Index
from ckptd.model.layout import Layout
from ckptd.restore.plan import FrameRead, plan
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.messages.restoring import Want

PARAMETER = "model.blocks.0.mlp.0.weight"
_targeted = restores.Restores.targeted


async def _older(self: restores.Restores, message: pb.RestoreTarget) -> None:
    if message.seq_plus_one:
        entries = catalog(await CommitLog(self._node.store, self._job).load())
        before = [entry for entry in entries if entry.seq + 1 < message.seq_plus_one]
        message.step, message.manifest = before[-1].step, before[-1].manifest
    await _targeted(self, message)


def _swapped(layout: Layout, index: Index, wants: Sequence[Want]) -> list[FrameRead]:
    sizes = {n: want.sizes[0] * want.sizes[1] * 4 for n, want in enumerate(wants) if want.fqn == PARAMETER}
    reads = plan(layout, index, wants)
    for read in reads:
        for number, size in sizes.items():
            mine = read.copies[:, 1] == number
            read.copies[mine, 2] = (read.copies[mine, 2] + size // 2) % size
    return reads


if __name__ == "__main__":
    if sys.argv.pop(1) == "older":
        restores.Restores.targeted = _older  # type: ignore[method-assign]
    else:
        together.plan = _swapped
    main()
