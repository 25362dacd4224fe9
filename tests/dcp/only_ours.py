"""Where torch's own loses something and ckptd must not. Each returns what is wrong with ours; that theirs is wrong is asserted,
so that a torch that has been mended is noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from ckptd_client.dcp import CkptdReader, CkptdWriter, saver
from ckptd_client.errors import ConfigError, UnsupportedStateError
from tests.dcp.backends import JOB, Backend, differences, plain
from tests.dcp.together import _Failing, _replicated


def state_of_each_rank(ours: Backend, files: Backend) -> list[str]:
    """FACTS: same-named plain tensors are deduplicated over ranks, and the state of each rank (its RNG!) is lost in silence."""
    torch.manual_seed(dist.get_rank())

    def mine() -> dict[str, Any]:
        return {"rng": torch.get_rng_state(), "position": {"rank": dist.get_rank(), "seen": [dist.get_rank()] * 3}}

    found = []
    for store in (ours, files):
        state = mine()
        dcp.save(state, storage_writer=store.writer("each"))
        into = {"rng": torch.zeros_like(state["rng"]), "position": {"rank": -1, "seen": [0, 0, 0]}}
        dcp.load(into, storage_reader=store.reader("each"))
        found.append(list(differences(plain(state), plain(into))))
    lost = [None] * dist.get_world_size()
    dist.all_gather_object(lost, bool(found[1]))
    assert any(lost), "torch's own keeps the state of each rank by now"
    group = dist.new_group([0, 1])
    if dist.get_rank() < 2:  # in a world of another size there are no ranks that it could be of: all get one and the same
        into = {"position": {"rank": -1}}
        dcp.load(into, storage_reader=ours.reader("each"), process_group=group)
        seen: list[Any] = [None, None]
        dist.all_gather_object(seen, into["position"]["rank"], group=group)
        if seen[0] != seen[1]:
            found[0].append(f"two ranks of another world got different ones: {seen}")
    return found[0]


def errors_in_worker_threads(ours: Backend, files: Backend) -> list[str]:
    """FACTS: dcp.save with worker threads and I/O errors returns success without some of the tensors."""
    dcp.save(
        _replicated(1), storage_writer=files.writer("threads", thread_count=2, single_file_per_rank=False), planner=_Worker()
    )
    try:
        dcp.load(_replicated(0), storage_reader=files.reader("threads"))
    except CheckpointException:
        pass
    else:
        raise AssertionError("torch's own has mended its worker threads")
    try:
        dcp.save(_replicated(1), storage_writer=ours.writer("threads"), planner=_Failing(1))
    except CheckpointException as error:
        return [] if 1 in error.failures else [f"rank 1 is not named: {error}"]
    return ["it said saved"]


class _Worker(_Failing):
    """Fails outside the main thread, where FileSystemWriter doesn't look."""

    def __init__(self) -> None:
        super().__init__(1)

    def resolve_data(self, write_item: Any) -> Any:
        import threading

        if threading.current_thread() is not threading.main_thread():
            raise OSError(5, "Input/output error")
        import time

        time.sleep(0.05)  # leaves the queue to the worker: which of them takes what is theirs to say
        return dcp.DefaultSavePlanner.resolve_data(self, write_item)


def ranks_that_disagree(ours: Backend, files: Backend) -> list[str]:
    """All of them are told."""
    found = []
    step = ours._step("disagree")
    try:
        dcp.save({"w": torch.ones(1)}, storage_writer=CkptdWriter(JOB, step=step + dist.get_rank() % 2))
        found.append("different steps were saved as one")
    except CheckpointException as error:
        if "ConfigError" not in str(error):
            found.append(f"it says: {error}")
    dcp.save({"w": torch.ones(1)}, storage_writer=CkptdWriter(JOB, step=step))
    dcp.save({"w": torch.ones(1)}, storage_writer=CkptdWriter(JOB, step=step + 1))
    into = {"w": torch.zeros(1)}
    try:
        dcp.load(into, storage_reader=CkptdReader(JOB, step=step + dist.get_rank() % 2))
        found.append("different commits were loaded as one")
    except CheckpointException as error:
        if "RestoreError" not in str(error):
            found.append(f"it says: {error}")
    return found


class _Late(_Failing):
    """Rank 1 fails, and rank 0 has staged nothing yet when it is told so."""

    def __init__(self) -> None:
        super().__init__(1)
        self._late = dist.get_rank() == 0

    def resolve_data(self, write_item: Any) -> Any:
        ours, deadline = saver.saver_of(JOB), time.monotonic() + 30.0
        while self._late and ours._step is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        return super().resolve_data(write_item)


def ranks_that_do_not_talk(ours: Backend, files: Backend) -> list[str]:
    """With use_collectives=False too it is one commit of all ranks, or none; and no rank is left with half of its tensors."""
    found, rank, step = [], dist.get_rank(), ours._step("apart")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {f"w{n}": distribute_tensor(torch.arange(8.0) + n, mesh, [Shard(0)]) for n in range(3)}

    def refused(what: str, said: str, work: Callable[[], object]) -> None:
        try:
            work()
            found.append(f"{what}: done")
        except (Exception, CheckpointException) as error:
            if said not in f"{error!r}":
                found.append(f"{what}: {error!r}")
        dist.barrier()

    def save(planner: dcp.SavePlanner | None = None, **more: Any) -> None:
        dcp.save(state, storage_writer=CkptdWriter(JOB, step=step), planner=planner, use_collectives=False, **more)

    def into(placement: Placement) -> dict[str, Any]:
        return {f"w{n}": distribute_tensor(torch.zeros(8), mesh, [placement]) for n in range(3)}

    refused("an error on rank 1", "Input/output error", lambda: save(_Failing(1)))
    refused("an error on rank 1, long before rank 0 has staged", "Input/output error", lambda: save(_Late()))
    patience, saver.FORM_SECONDS = saver.FORM_SECONDS, 3.0
    refused("a rank that does not come", "no plan" if rank == 1 else "did not come together", lambda: save(_Planless(1)))
    saver.FORM_SECONDS = patience
    load = partial(dcp.load, into(Shard(0)), storage_reader=CkptdReader(JOB, step=step))
    refused("a load of nothing", f"no step {step}", load)
    save()
    again = into(Shard(0))
    dcp.load(again, storage_reader=CkptdReader(JOB, step=step))
    found += differences(plain(state), plain(again))
    dist.barrier()
    load = partial(dcp.load, into(Replicate()), storage_reader=CkptdReader(JOB, step=step))
    refused("another layout", "layout it was saved from", load)
    if rank:
        alone = {"storage_writer": CkptdWriter(JOB, step=step), "no_dist": True, "use_collectives": False}
        try:
            dcp.save(state, **alone)
            found.append("a single one of the ranks has saved")
        except ConfigError:
            pass
    return found


def refused_on_one_rank(ours: Backend, files: Backend) -> list[str]:
    """All ranks are told what was refused: DCP pickles errors, and one that doesn't come out again breaks its collective."""
    rank = dist.get_rank()
    try:
        dcp.save({"ckptd.x" if rank == 1 else f"x{rank}": torch.ones(2)}, storage_writer=ours.writer("refused"))
    except CheckpointException as error:
        told = error.failures[1][0]
        return [] if isinstance(told, UnsupportedStateError) and told.path == "ckptd.x" else [f"it says: {told!r}"]
    return ["it said saved"]


class _Planless(dcp.DefaultSavePlanner):
    """Fails on one rank before the ranks come together."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._fails = dist.get_rank() == rank

    def create_local_plan(self) -> Any:
        if self._fails:
            raise ValueError("no plan")
        return super().create_local_plan()


OURS: list[Callable[[Backend, Backend], list[str]]] = [
    state_of_each_rank, errors_in_worker_threads, ranks_that_disagree, ranks_that_do_not_talk, refused_on_one_rank,
]  # fmt: skip


def uneven_fsdp_over_tp(ours: Backend, files: Backend) -> list[str]:
    """FACTS: FSDP2 over TP puts the parts of 7 rows on 3 × 2 ranks at wrong places, which DCP's validation does not notice."""
    mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp"))
    whole = torch.arange(14.0).view(7, 2)

    def made(fill: torch.Tensor) -> nn.Module:
        model = nn.Linear(2, 7, bias=False)
        with torch.no_grad():
            model.weight.copy_(fill)
        parallelize_module(model, mesh["tp"], ColwiseParallel())
        fully_shard(model, mesh=mesh["dp"])
        return model

    found = []
    for store in (ours, files):
        wrong = []
        try:
            dcp.save(made(whole).state_dict(), storage_writer=store.writer("strided"))
            into: dict[str, Any] = {"weight": torch.zeros(7, 2)}
            dcp.load(into, storage_reader=store.reader("strided"))
            wrong += differences(plain(whole), plain(into["weight"]), "whole")
            again = made(torch.zeros(7, 2))
            state = again.state_dict()
            dcp.load(state, storage_reader=store.reader("strided"))
            wrong += differences(plain(made(whole).state_dict()), plain(state), "sharded")
        except CheckpointException as error:
            wrong.append(str(error))
        found.append(wrong)
    lost: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lost, bool(found[1]))
    assert any(lost), "torch has mended its offsets"
    return found[0]


OURS_OF_SIX: list[Callable[[Backend, Backend], list[str]]] = [uneven_fsdp_over_tp]
