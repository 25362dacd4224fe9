"""Flows of a real gloo world of four. What each rank returns is compared between the backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor, init_from_local_shards
from torch.distributed._shard.sharded_tensor.shard import Shard as LocalShard
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ckptd_client.dcp import CkptdStager
from tests.dcp.backends import Backend

SIZE = 4


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 2))


def _fsdp(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (SIZE,)))
    return model


def _hsdp(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    return model


def _tp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (SIZE,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def _fsdp_tp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return model


def _plainly(model: nn.Module) -> nn.Module:
    return model


LAYOUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fsdp": _fsdp, "hsdp": _hsdp, "tp": _tp, "fsdp_tp": _fsdp_tp, "plain": _plainly,
}  # fmt: skip


def _train(model: nn.Module, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(99)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    return optimizer


def _whole(state: Any) -> Any:
    """With DTensors as whole tensors. A collective."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: _whole(part) for key, part in state.items()}
    return state


def train_and_come_back(store: Backend) -> Any:
    """FSDP2 and AdamW through get_state_dict and set_state_dict."""
    model = _fsdp(_model(1))
    optimizer = _train(model, 3)
    msd, osd = get_state_dict(model, optimizer)
    dcp.save({"model": msd, "optim": osd}, storage_writer=store.writer("train"))
    other = _fsdp(_model(2))
    fresh = _train(other, 1)
    msd, osd = get_state_dict(other, fresh)
    state = {"model": msd, "optim": osd}
    dcp.load(state, storage_reader=store.reader("train"))
    set_state_dict(other, fresh, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return [_whole(part) for part in get_state_dict(other, fresh)]


def any_layout_to_any(store: Backend) -> Any:
    """Each layout is loaded into the two that follow it in the list, and into itself."""
    found = {}
    names = list(LAYOUTS)
    for source, place in LAYOUTS.items():
        model = place(_model(3))
        optimizer = _train(model, 2)
        msd, osd = get_state_dict(model, optimizer)
        dcp.save({"model": msd, "optim": osd}, storage_writer=store.writer(f"from {source}"))
        for target in [names[(names.index(source) + n) % len(names)] for n in range(3)]:
            other = LAYOUTS[target](_model(4))
            fresh = _train(other, 1)
            msd, osd = get_state_dict(other, fresh)
            state = {"model": msd, "optim": osd}
            dcp.load(state, storage_reader=store.reader(f"from {source}"))
            found[f"{source} to {target}"] = _whole(state)
    return found


def full_state_dicts(store: Backend) -> Any:
    model = _fsdp(_model(5))
    state = {"model": get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))}
    state["rank"] = dist.get_rank() if not state["model"] else 0  # rank 0 alone has the model
    dcp.save(state, storage_writer=store.writer("full"))
    into = {"model": _model(6).state_dict()}
    dcp.load(into, storage_reader=store.reader("full"))
    return into


def uneven_shards(store: Backend) -> Any:
    """5 rows over 4 ranks, and 2: some ranks have none."""
    mesh = init_device_mesh("cpu", (SIZE,))
    whole = {rows: torch.arange(rows * 3.0).view(rows, 3) for rows in (5, 2, 9)}
    state = {str(rows): distribute_tensor(tensor, mesh, [Shard(0)]) for rows, tensor in whole.items()}
    dcp.save(state, storage_writer=store.writer("uneven"))
    into: dict[str, Any] = {str(rows): distribute_tensor(torch.zeros(rows, 3), mesh, [Shard(1)]) for rows in whole}
    dcp.load(into, storage_reader=store.reader("uneven"))
    again = {str(rows): torch.zeros(rows, 3) for rows in whole}
    dcp.load(again, storage_reader=store.reader("uneven"))
    return [into, again]


def sharded_tensors(store: Backend) -> Any:
    def made(fill: float) -> ShardedTensor:
        rank = dist.get_rank()
        local = torch.full((2, 3), fill + rank)
        return init_from_local_shards([LocalShard.from_tensor_and_offsets(local, [2 * rank, 0], rank)], 2 * SIZE, 3)

    dcp.save({"st": made(1.0)}, storage_writer=store.writer("sharded"))
    into = {"st": made(50.0)}
    dcp.load(into, storage_reader=store.reader("sharded"))
    whole = {"st": torch.zeros(2 * SIZE, 3)}
    dcp.load(whole, storage_reader=store.reader("sharded"))
    state = {"st": made(7.0)}
    future = dcp.async_save(state, storage_writer=store.writer("sharded later"))
    state["st"].local_shards()[0].tensor.fill_(-1)
    future.result()
    later = {"st": torch.zeros(2 * SIZE, 3)}
    dcp.load(later, storage_reader=store.reader("sharded later"))
    return [into["st"].local_shards()[0].tensor, whole, later]


def values_of_all_ranks(store: Backend) -> Any:
    """The same everywhere, and what only some ranks have, as pipeline stages do."""
    rank = dist.get_rank()
    state = {"common": {"lr": 0.1, "w": torch.arange(4.0)}, f"stage{rank}": {"w": torch.full((3,), float(rank)), "n": rank}}
    dcp.save(state, storage_writer=store.writer("values"))
    whole = _load_state_dict_from_keys(None, storage_reader=store.reader("values"))
    into = {"common": {"lr": 0.0, "w": torch.zeros(4)}, f"stage{rank}": {"w": torch.zeros(3), "n": -1}}
    dcp.load(into, storage_reader=store.reader("values"))
    return [whole, into]


def cached_plans(store: Backend) -> Any:
    mesh = init_device_mesh("cpu", (SIZE,))
    found = []
    for at in range(3):
        state = {
            "w": distribute_tensor(torch.full((8, 2), float(at)), mesh, [Shard(0)]),
            "at": at,
            "p": torch.full((2,), float(at)),
        }
        planner = DefaultSavePlanner(enable_plan_caching=True)
        planner._cached_plans_key = f"cached by {store.ours}"
        dcp.save(state, storage_writer=store.writer(f"cached{at}"), planner=planner)
        into = {"w": torch.zeros(8, 2), "at": -1, "p": torch.zeros(2)}
        dcp.load(into, storage_reader=store.reader(f"cached{at}"))
        found.append(into)
    return found


def group_of_two(store: Backend) -> Any:
    group = dist.new_group([1, 3])
    if dist.get_rank() not in (1, 3):
        return None
    dcp.save({"w": torch.arange(3.0), "r": "x"}, storage_writer=store.writer("group"), process_group=group)
    into = {"w": torch.zeros(3), "r": ""}
    dcp.load(into, storage_reader=store.reader("group"), process_group=group)
    return into


def error_on_one_rank(store: Backend) -> Any:
    """All ranks raise and nothing is there; the next save is as if nothing had been."""
    seen = []
    for bad in (0, 2):
        planner = _Failing(bad)
        try:
            dcp.save(_replicated(bad), storage_writer=store.writer(f"bad{bad}"), planner=planner)
            seen.append("saved")
        except CheckpointException as error:
            seen.append(sorted(error.failures))
    dcp.save({"w": torch.ones(2)}, storage_writer=store.writer("good"))
    into = {"w": torch.zeros(2)}
    dcp.load(into, storage_reader=store.reader("good"))
    try:
        dcp.load(_replicated(0), storage_reader=store.reader("bad2"))
        seen.append("loaded")
    except CheckpointException:
        seen.append("refused")
    return [seen, into]


def _replicated(value: float) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (SIZE,))
    return {f"w{n}": distribute_tensor(torch.full((8,), float(value)), mesh, [Shard(0)]) for n in range(4)}


class _Failing(DefaultSavePlanner):
    """As when a disk or a device fails under one rank: reading its second tensor is an I/O error."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._fails = dist.get_rank() == rank
        self._resolved = 0

    def resolve_data(self, write_item: Any) -> Any:
        self._resolved += 1
        if self._fails and self._resolved == 2:
            raise OSError(5, "Input/output error")
        return super().resolve_data(write_item)


def async_in_a_thread(store: Backend) -> Any:
    mesh = init_device_mesh("cpu", (SIZE,))
    local = torch.zeros(2, 3)
    state = {
        "w": DTensor.from_local(local, mesh, [Shard(0)]),
        "r": DTensor.from_local(torch.ones(3), mesh, [Replicate()]),
        "n": 1,
    }
    for at in range(3):
        local.fill_(at + dist.get_rank())
        future = dcp.async_save(
            state, storage_writer=store.writer(f"thread{at}"), async_stager=CkptdStager() if at == 1 else None
        )
        local.fill_(-1)
        future.result()
    found = []
    for at in range(3):
        into = {"w": torch.zeros(8, 3), "r": torch.zeros(3), "n": 0}
        dcp.load(into, storage_reader=store.reader(f"thread{at}"))
        found.append(into)
    return found


def async_in_a_process(store: Backend) -> Any:
    mesh = init_device_mesh("cpu", (SIZE,))
    dcp.save({"before": torch.ones(1)}, storage_writer=store.writer("before"))
    found = []
    for at in range(2):
        local = torch.full((2, 3), float(at + dist.get_rank()))
        state = {"w": DTensor.from_local(local, mesh, [Shard(0)]), "n": at}
        future = dcp.async_save(
            state, storage_writer=store.writer(f"process{at}"), async_checkpointer_type=AsyncCheckpointerType.PROCESS
        )
        local.fill_(-1)
        future.result()
        into = {"w": torch.zeros(8, 3), "n": -1}
        dcp.load(into, storage_reader=store.reader(f"process{at}"))
        found.append(into)
    return found


def without_collectives(store: Backend) -> Any:
    """Each rank has metadata of its own, and gets back all that it had itself."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (SIZE,))

    def made(fill: float) -> dict[str, Any]:
        rows = torch.arange(15.0).view(5, 3) * fill
        return {
            "shards": distribute_tensor(rows, mesh, [Shard(0)]),  # one rank has none
            "columns": distribute_tensor(rows, mesh, [Shard(1)]),
            "same": distribute_tensor(rows, mesh, [Replicate()]),
            "plain": torch.full((100_000,), fill + rank),
            "scalar": torch.tensor(fill * rank),
            "nested": {"rank": rank * fill, f"only{rank}": torch.full((rank,), fill), "text": "x" * rank},
        }

    found = []
    for at, later in enumerate((False, True, False)):
        state, writer = made(1.0 + at), store.writer("apart" if at != 1 else "apart later")  # the first one is saved over
        if later:
            dcp.async_save(state, storage_writer=writer, use_collectives=False).result()
        else:
            dcp.save(state, storage_writer=writer, use_collectives=False)
        dist.barrier()  # theirs has overwritten nothing of this rank's when the others are done
        into = made(0.0)
        dcp.load(into, storage_reader=store.reader("apart" if at != 1 else "apart later"))
        found.append(into)
    for at in range(2):
        planner = DefaultSavePlanner(enable_plan_caching=True)
        planner._cached_plans_key = f"apart by {store.ours}"
        state = {"plain": torch.full((3,), float(at + rank)), "at": at}
        dcp.save(state, storage_writer=store.writer(f"apart cached{at}"), planner=planner, use_collectives=False)
        into = {"plain": torch.zeros(3), "at": -1}
        dcp.load(into, storage_reader=store.reader(f"apart cached{at}"))
        found.append(into)
    dcp.save({"w": torch.ones(2), "r": 1}, storage_writer=store.writer("and together"))
    into = {"w": torch.zeros(2), "r": 0}
    dcp.load(into, storage_reader=store.reader("and together"))
    return [found, into]


FLOWS = [
    train_and_come_back, any_layout_to_any, full_state_dicts, uneven_shards, sharded_tensors, values_of_all_ranks, cached_plans,
    group_of_two, error_on_one_rank, async_in_a_thread, async_in_a_process,
    without_collectives,
]  # fmt: skip
