"""Requests to the store per checkpoint and per restore, and their list price on S3, for 1 to 64 nodes of a fixed state each.

The nodes are writers and readers in one process, over the code of daemons and coordinator: parts, layout, index, manifest,
COMMIT; RETIRE and the collection of one checkpoint; for a restore a new coordinator reads the log, PIN, what each node reads,
UNPIN. A request of a store's verb is one request of S3. Counted, not timed: one round says all.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.result import Result, at_most
from benchmarks.run import alone
from ckptd.commit.assemble import assemble
from ckptd.commit.collect import make_plan
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, pin, take_office, unpin
from ckptd.commit.sweep import execute
from ckptd.config import ArenaSettings
from ckptd.model.frame import MAX_FRAME_BYTES
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import log_key
from ckptd.model.records import MAX_RECORD_BYTES
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import open_checkpoint
from ckptd.restore.fetch import READ_BYTES, fetch
from ckptd.restore.plan import plan
from ckptd.store.base import Store, get_small
from ckptd.store.directory import DirectoryStore
from ckptd.store.metered import MeteredStore, StoreMetrics
from ckptd_client.messages.restoring import Want
from ckptd_client.messages.saving import Item

NODES = (1, 2, 4, 8, 16, 32, 64)
TENSORS, ROWS, COLUMNS = 8, 1024, 1024  # of fp32 on each node: 32 MiB, two segments
RING_FRAMES = ArenaSettings.model_fields["ring_bytes"].default // MAX_FRAME_BYTES  # a daemon's: ranges are as long as there
NODE_BYTES = TENSORS * ROWS * COLUMNS * 4
JOB = "job"
LINEAR = 1.02
KINDS = {"put": "PUT", "create": "PUT", "get": "GET", "info": "GET", "list": "LIST", "children": "LIST", "delete": "DELETE"}
# us-east-1, S3 Standard, per request; a deletion costs nothing.
DOLLARS = {"PUT": 5e-6, "LIST": 5e-6, "GET": 4e-7, "DELETE": 0.0}


@dataclass
class Counted:
    """A store and what has been asked of it."""

    store: Store
    metrics: StoreMetrics
    seen: Counter[str] = field(default_factory=Counter)

    def since(self) -> Counter[str]:
        """Requests by kind since the last call."""
        now: Counter[str] = Counter()
        for family in self.metrics.requests.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    now[KINDS[sample.labels["verb"]]] += int(sample.value)
        asked, self.seen = now - self.seen, now
        return asked


def measure(_rounds: int) -> list[Result]:
    """In this process."""
    counted: dict[str, dict[int, Counter[str]]] = {"commit": {}, "collection": {}, "restore": {}}
    for nodes in NODES:
        with tempfile.TemporaryDirectory(prefix="ckptd-requests-", dir="/dev/shm") as directory:
            for path, asked in asyncio.run(_run(Path(directory), nodes)).items():
                counted[path][nodes] = asked
    per_node = {nodes: asked.total() / nodes for nodes, asked in counted["restore"].items()}
    growth = {path: _growth({n: asked.total() for n, asked in by_nodes.items()}) for path, by_nodes in counted.items()}
    lists = {path: max(asked["LIST"] for asked in counted[path].values()) for path in counted}
    result = Result(
        "requests",
        f"requests of a restore per node, {NODES[-1]} nodes of {NODE_BYTES >> 20} MiB",
        "requests",
        "lower",
        per_node[NODES[-1]],
        None,
        {},
        1,
        raw={
            f"{path}: {kind}": [asked[kind] for asked in by_nodes.values()]
            for path, by_nodes in counted.items()
            for kind in DOLLARS
        },
        notes={
            "nodes": NODES,
            "dollars per 1000": {
                path: [1000 * sum(DOLLARS[kind] * n for kind, n in asked.items()) for asked in by_nodes.values()]
                for path, by_nodes in counted.items()
            },
            "one more node at the end ÷ at the beginning": growth,
        },
    )
    return [
        result.holding(
            at_most("restore: what a node adds, the last ÷ the first", growth["restore"], LINEAR),
            at_most("commit: what a node adds, the last ÷ the first", growth["commit"], LINEAR),
            at_most("LIST in a commit", lists["commit"], 0),
            at_most("LIST in a restore", lists["restore"], 0),
        )
    ]


def _growth(totals: Mapping[int, int]) -> float:
    """What a node adds between the two greatest numbers of nodes, over what it adds between the two smallest: 1 is linear.

    (The exponent of a fit would be flattered by what doesn't grow.)
    """
    (a, first), (b, second), *_, (c, third), (d, fourth) = sorted(totals.items())
    return ((fourth - third) / (d - c)) / ((second - first) / (b - a))


async def _run(root: Path, nodes: int) -> dict[str, Counter[str]]:
    metrics = StoreMetrics(CollectorRegistry())
    counted = Counted(MeteredStore(DirectoryStore(root), metrics), metrics)
    store, generation = counted.store, Generation(1, 1)
    memory = memoryview(np.random.default_rng(nodes).bytes(NODE_BYTES))
    with ThreadPoolExecutor(2) as pool:
        log = CommitLog(store, JOB)
        await log.load()
        committer = Committer(log, await take_office(log))
        numbers = [itertools.count() for _ in range(nodes)]
        commits = []
        for step in (1, 2):  # the second is like all later ones
            counted.since()
            attempt = Attempt(Snapshot(generation, step), 0)
            commits.append(await _commit(store, log, committer, attempt, memory, numbers, pool))
            commit = counted.since()
        await committer.retire(commits[0][0])
        await execute(store, log, await make_plan(store, JOB, log.state, 0.0, {}))
        collection = counted.since()
        await _restore(store, *commits[1], nodes, memory, pool)
        restore = counted.since()
    await store.close()
    return {"commit": commit, "collection": collection, "restore": restore}


async def _commit(
    store: Store,
    log: CommitLog,
    committer: Committer,
    attempt: Attempt,
    memory: memoryview,
    numbers: Sequence[itertools.count[int]],
    pool: ThreadPoolExecutor,
) -> tuple[int, str]:
    """(its record, hash of its manifest)"""
    parts = []
    for node, count in enumerate(numbers):
        source = RankSource(node, [_item(number, node, len(numbers)) for number in range(TENSORS)], (), memory)
        parts.append(await write_part(store, JOB, attempt, f"n{node}.aa", [source], WriteOptions(), pool, count))
    parent = max(log.state.commits, default=None)
    manifest, name = await assemble(store, JOB, attempt, len(parts), parent, parts, log.state.commits)
    return await committer.commit(attempt, name, parent=manifest.parent), name


async def _restore(store: Store, seq: int, manifest: str, nodes: int, memory: memoryview, pool: ThreadPoolExecutor) -> None:
    log = CommitLog(store, JOB)
    await log.load()
    await pin(log, seq, "restore")
    for node in range(nodes):
        await get_small(store, log_key(JOB, 0), MAX_RECORD_BYTES)  # a daemon sees that it looks at the coordinator's store
        if await _read(store, manifest, node, nodes, pool) != memory:
            raise RuntimeError(f"node {node} of {nodes} got other bytes than were saved")
    await unpin(log, seq, "restore")


async def _read(store: Store, manifest: str, node: int, nodes: int, pool: ThreadPoolExecutor) -> bytearray:
    """What the node gets of its part, through a ring."""
    checkpoint = await open_checkpoint(store, JOB, manifest)
    items = [_item(number, node, nodes) for number in range(TENSORS)]
    wants = [Want(item.fqn, -1, item.dtype, item.shape, item.offsets, item.sizes) for item in items]
    reads = plan(checkpoint.layout, checkpoint.index, wants)
    got, ring = bytearray(NODE_BYTES), HeapBuffers(max(read.raw_bytes for read in reads), RING_FRAMES)

    def deliver(number: int, copies: Ints) -> None:
        for frame_offset, want, want_offset, count in copies.tolist():
            start = items[want].slot_offset + want_offset
            got[start : start + count] = ring.memory[number][frame_offset : frame_offset + count]
        ring.give_back(number)

    await fetch(store, checkpoint, reads, ring, deliver, pool, ByteBudget(READ_BYTES))
    return got


def _item(number: int, node: int, nodes: int) -> Item:
    nbytes = NODE_BYTES // TENSORS
    shape, offsets, sizes = (nodes * ROWS, COLUMNS), (node * ROWS, 0), (ROWS, COLUMNS)
    return Item(f"layers.{number}.weight", "tensor", "global", "float32", shape, offsets, sizes, number * nbytes, nbytes)


if __name__ == "__main__":
    alone(measure, rounds=1)
