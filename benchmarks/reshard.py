"""How much and how long a load into another layout reads: 8 nodes → 6, rows → rows and rows → columns, beside DCP over s3fs.

Eight nodes of a rank each save tensors of 512, 128 and 32 MiB in row shards. Six ranks load them: as rows on a node each, and
as columns on two nodes, where each of three ranks needs some of every frame. What a node fetched is what its daemon says, all
its fetches together; what it needed is counted from the checkpoint's own description. Every byte is compared, not timed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, zeros

from benchmarks.peers import Ckptd, Dcp, FsspecStorage, State, local_of
from benchmarks.result import OURS, Result, at_most, from_rounds
from benchmarks.rounds import Rounds, interleave
from benchmarks.run import alone
from benchmarks.stage import Deployment, Stage, rounds_of
from benchmarks.state import few
from benchmarks.worker import tell
from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog
from ckptd.config import Settings
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.worlds import NodeRead, node_read, world_of
from ckptd.store.open import open_store

_WIDTH = 1024
_SAVERS, _LOADERS, _COLUMN_NODES = 8, 6, 2
_MIB = 1 << 20
_SIZES = {"512": (512 * _MIB, 1), "128": (256 * _MIB, 2), "32": (128 * _MIB, 4)}  # bytes of all tensors, and how many
Where = dict[str, str]


def measure(rounds: int) -> list[Result]:
    """Seconds of a load of the 512 MiB tensor, rows → rows, the slowest of six ranks; the bytes of all of them in the notes."""
    with Stage() as stage:
        settings = {"CKPTD_DAEMON__CODEC": "raw"}
        store = f"{stage.bucket}/reshard"
        first = stage.deploy(settings, name="512", store=store, nodes=_SAVERS)
        jobs = {"512": first} | {
            name: stage.deploy(settings, name=name, store=store, on=first) for name in _SIZES if name != "512"
        }
        stage.ranks(save, _SAVERS, jobs=_places(jobs, _SAVERS))
        told = stage.ranks(load_rows, _LOADERS, jobs=_places(jobs, _LOADERS), rounds=rounds)
        split = len(first.logged("fetched"))
        stage.ranks(load_columns, _LOADERS, jobs=_places(jobs, _COLUMN_NODES, _LOADERS // _COLUMN_NODES))
        lines = first.logged("fetched")
        opened = {name: asyncio.run(_opened(stage, store, job)) for name, job in jobs.items()}
        rows = {name: _compared(opened[name], jobs[name], lines[:split], "S0", 1) for name in jobs}
        columns = {name: _compared(opened[name], jobs[name], lines[split:], "S1", _LOADERS // _COLUMN_NODES) for name in jobs}
    notes = {"rows_to_rows": rows, "rows_to_columns": columns, "nodes": f"{_SAVERS} → {_LOADERS}", "bit_equal": True}
    what = "seconds to load a 512 MiB tensor that 8 nodes saved on 6 nodes, rows → rows, the slowest of six ranks"
    result = from_rounds("reshard", what, "s", rounds_of(told), None, notes=notes)
    frames = max(part["frames_fetched_per_needed"] for kind in (rows, columns) for part in kind.values())
    return [
        result.holding(
            at_most("frames fetched ÷ needed, the worst node", frames, 1.0),
            at_most("bytes ÷ needed, 512 MiB, rows → rows", rows["512"]["bytes_per_needed"], 1.1),
            at_most("÷ dcp s3fs", result.ckptd / result.peers["dcp s3fs"], 1 / 3),
        )
    ]


def _places(jobs: dict[str, Deployment], nodes: int, per_node: int = 1) -> dict[str, list[Where]]:
    """Each rank's daemon, by job."""
    return {
        name: [{"job": where.job, "socket": where.socket} for where in job.nodes[:nodes] for _ in range(per_node)]
        for name, job in jobs.items()
    }


async def _opened(stage: Stage, store: str, job: Deployment) -> Checkpoint:
    reader = open_store(store, stage.minio.storage_options)
    newest = restore_candidate(await CommitLog(reader, job.where.job).load())
    assert newest is not None
    return await open_checkpoint(reader, job.where.job, newest.manifest)


def _compared(
    checkpoint: Checkpoint, job: Deployment, lines: Sequence[tuple[int, dict[str, Any]]], place: str, per_node: int
) -> dict[str, float]:
    """The worst node's frames, and all nodes' bytes, as their daemons fetched them and as they were needed."""
    world = world_of([_LOADERS], [place], per_node)
    ring_bytes = Settings().arena.ring_bytes
    needed = [node_read(checkpoint.layout, checkpoint.index, world, ranks, ring_bytes) for ranks in world.nodes]
    mine = [(node, line) for node, line in lines if line["job"] == job.where.job]
    loads = len(mine) and sum(len(line["ranks"]) for _, line in mine) // _LOADERS
    if not loads or any(node >= len(needed) for node, _ in mine):
        raise RuntimeError(f"the daemons have not said what they fetched lines={mine[:5]}")
    return {
        "frames_fetched_per_needed": max(
            sum(line["frames"] for node, line in mine if node == number) / loads / read.frames
            for number, read in enumerate(needed)
        ),
        "bytes_per_needed": sum(line["bytes"] for _, line in mine) / loads / sum(read.needed_bytes for read in needed),
        "planned_bytes_per_needed": _planned(needed),
        "loads": loads,
    }


def _planned(reads: Sequence[NodeRead]) -> float:
    return sum(read.fetched_bytes for read in reads) / sum(read.needed_bytes for read in reads)


def _empty(name: str, dim: int) -> State:
    """This rank's part of the tensors of a size, in another layout than they were saved in."""
    total, count = _SIZES[name]
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shape = (total // count // _WIDTH // 4, _WIDTH)
    return {f"layer{i}.weight": zeros(*shape, device_mesh=mesh, placements=[Shard(dim)]) for i in range(count)}


def _saved(name: str) -> State:
    total, count = _SIZES[name]
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parts = few(total, count, dist.get_rank(), dist.get_world_size())
    return {fqn: DTensor.from_local(part, mesh, [Shard(0)], run_check=False) for fqn, part in parts.items()}


def save(bucket: str, jobs: dict[str, list[Where]]) -> None:
    """In each of eight ranks."""
    for name, places in jobs.items():
        state = _saved(name)
        ours = Ckptd(state, places[dist.get_rank()])
        ours.start(0)
        ours.finish()
        ours.close()
        if name == "512":
            _dcp(bucket, state).start(0)


def _dcp(bucket: str, state: State) -> Dcp:
    storage = FsspecStorage(f"{bucket}/dcp", tuned=False)
    storage.writer(0)  # it reads what this would write
    return Dcp("dcp s3fs", state, storage)


def load_rows(bucket: str, jobs: dict[str, list[Where]], rounds: int) -> None:
    """In each of six ranks, on a node each."""
    given = _empty("512", 0)
    peer = _dcp(bucket, given)
    loads = {OURS: partial(_new_world, given, jobs["512"]), "dcp s3fs": lambda _: _seconds(lambda: peer.load(given))}
    checked = {who: partial(_checked, load, given, "512") for who, load in loads.items()}
    found: Rounds = interleave(checked, rounds, warm_up=1, between=partial(_spoil, given))
    tell("rounds", first=found.first, raw=found.raw)
    _once(jobs, 0, [name for name in jobs if name != "512"])


def load_columns(bucket: str, jobs: dict[str, list[Where]]) -> None:
    """In each of six ranks, three on a node."""
    _once(jobs, 1, list(jobs))


def _once(jobs: dict[str, list[Where]], dim: int, names: Sequence[str]) -> None:
    for name in names:
        given = _empty(name, dim)
        _checked(partial(_new_world, given, jobs[name]), given, name, 0)


def _new_world(given: State, places: Sequence[Where], _: int) -> float:
    """A world is known by its master's address."""
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    ours = Ckptd(given, places[dist.get_rank()])
    seconds = _seconds(lambda: ours.load(given))
    ours.close()
    return seconds


def _seconds(do: Any) -> float:
    dist.barrier()
    begun = time.perf_counter()
    do()
    seconds = time.perf_counter() - begun
    dist.barrier()
    return seconds


def _checked(load: Any, given: State, name: str, number: int) -> float:
    """Not timed: every byte, after each load, beside what was saved. Raises RuntimeError."""
    seconds: float = load(number)
    total, count = _SIZES[name]
    saved_rows = total // count // _WIDTH // 4 // _SAVERS
    for writer in range(_SAVERS):
        first = writer * saved_rows
        if not any(_meets(tensor, first, saved_rows) for tensor in given.values()):
            continue
        for fqn, part in few(total, count, writer, _SAVERS).items():
            mine = _common(given[fqn], first, part)
            if mine is not None and not torch.equal(*mine):
                raise RuntimeError(f"what was loaded is not what was saved who={name} fqn={fqn} writer={writer}")
    dist.barrier()
    return seconds


def _span(tensor: torch.Tensor) -> tuple[int, int, int]:
    """(the dimension along which it is cut, from where to where this rank has it)."""
    assert isinstance(tensor, DTensor)
    [placement] = tensor.placements
    assert isinstance(placement, Shard)
    start = -(-tensor.shape[placement.dim] // dist.get_world_size()) * dist.get_rank()
    return placement.dim, start, start + tensor.to_local().shape[placement.dim]


def _meets(tensor: torch.Tensor, first_row: int, rows: int) -> bool:
    dim, start, end = _span(tensor)
    return dim == 1 or (start < first_row + rows and first_row < end)


def _common(tensor: torch.Tensor, first_row: int, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a rank has of a writer's rows, and what it should be; as bits: NaN is equal to itself."""
    dim, start, end = _span(tensor)
    local, saved = local_of(tensor).view(torch.int32), part.view(torch.int32)
    if dim == 1:
        return local[first_row : first_row + len(saved)], saved[:, start:end]
    low, high = max(start, first_row), min(end, first_row + len(saved))
    return (local[low - start : high - start], saved[low - first_row : high - first_row]) if low < high else None


def _spoil(given: State) -> None:
    for tensor in given.values():
        local_of(tensor).zero_()


if __name__ == "__main__":
    alone(measure, rounds=3)
