"""What the rank processes of test_ranks.py run. Full tensors are gathered and hashed by torch and this file alone."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from ckptd_client import connect
from ckptd_client.errors import UnsupportedStateError
from ckptd_client.placement import Holders
from ckptd_client.regions import regions_of

# torch 2.13: the destructor of DDP's reducer takes gloo's lock while it holds the GIL, and may wait for ever for a gloo thread
# that has the lock and wants the GIL. So no model is destroyed before the process ends.
_alive: list[torch.nn.Module] = []


class Net(torch.nn.Module):
    """Rows that don't divide (7 over 3), too few (2 over 3: an empty shard), one frozen, a buffer that differs by rank."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(8, 7)
        self.norm = torch.nn.LayerNorm(7)
        self.two = torch.nn.Linear(7, 2)
        self.frozen = torch.nn.Parameter(torch.randn(5, 4), requires_grad=False)
        self.register_buffer("where", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(self.norm(self.one(x)))
        return out


def full(value: Any) -> torch.Tensor:
    whole: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach()


def digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    found = hashlib.sha256()
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    for name, value in inner.state_dict().items():
        found.update(name.encode() + repr(full(value).reshape(-1).view(torch.uint8).tolist()).encode())
    for number, entries in optimizer.state_dict()["state"].items():
        for key in sorted(entries):
            found.update(f"{number} {key}".encode() + repr(full(entries[key]).reshape(-1).view(torch.uint8).tolist()).encode())
    return found.hexdigest()


def build(kind: str, world: int, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model: torch.nn.Module = Net()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model.one, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.01)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        next(b for name, b in model.named_buffers() if name.endswith("where")).add_(rank + 1)


def check_regions(world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    everybody = Holders(tuple(range(world)))
    for rows in range(8):
        for placement in (Shard(0), Shard(1), Replicate()):
            whole = torch.arange(rows * 5).view(rows, 5)
            tensor = distribute_tensor(whole, mesh, [placement])
            (region,) = regions_of(tensor, everybody, dist.get_rank(), "x")
            cut = tuple(slice(o, o + s) for o, s in zip(region.offsets, region.sizes, strict=True))
            assert torch.equal(whole[cut], tensor.to_local()), (rows, placement, region)
            assert region.shape == (rows, 5) and (region.holders == everybody.ranks) == (placement == Replicate())
    for odd in (
        DTensor.from_local(torch.ones(2), mesh, [Partial()]),
        DTensor.from_local(torch.ones(4), mesh, [Shard(0)], shape=torch.Size([3 * world]), stride=(1,)),
    ):
        try:
            regions_of(odd, everybody, dist.get_rank(), "some.path")
        except UnsupportedStateError as error:
            assert error.path == "some.path"
        else:
            raise AssertionError(odd)


def phase(number: int, kind: str, world: int, rank: int, total: int, seen: dict[str, Any]) -> None:
    """Restore in a new world, compare with what the last one had, train on to ``total`` steps."""
    if rank >= world:
        return
    port = int(os.environ["BASE_PORT"]) + number
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    if kind != "plain":
        dist.init_process_group("gloo", init_method=f"file://{os.environ['RENDEZVOUS']}-{number}", rank=rank, world_size=world)
    if number == 0:
        check_regions(world)
    model, optimizer = build(kind, world, 100 + number)
    _alive.append(model)
    with connect("job") as ckpt:
        ckpt.register(model=model, optimizer=optimizer)
        for n in ckpt.steps(total):
            if n == seen.get("steps", 0) + 1:
                _compare(ckpt.rng_restored, digest(model, optimizer), world, seen, number)
            train(model, optimizer, rank + n)
        # ranks differ in the buffer: what counts is rank 0's
        mine = [digest(model, optimizer)]
        if kind != "plain":
            dist.broadcast_object_list(mine)
        torch.rand(1)
        seen.update(steps=total, digest=mine[0], world=world)
    if kind != "plain":
        dist.destroy_process_group()


def _compare(rng: str | None, found: str, world: int, seen: dict[str, Any], number: int) -> None:
    if "digest" not in seen:
        assert rng is None and number == 0
        return
    assert found == seen["digest"], f"phase {number} did not start where the last one ended"
    assert rng == ("exact" if world == seen["world"] else "derived"), rng


def main(rank: int, phases: list[tuple[str, int]], env: dict[str, str], results: Any) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    seen: dict[str, Any] = {}
    for number, (kind, world) in enumerate(phases):
        phase(number, kind, world, rank, 2 * number + 2, seen)
        # who sat a phase out learns what to expect from those who were in it
        results[number, rank] = dict(seen)
        while (number, 0) not in results:
            time.sleep(0.01)
        seen = dict(results[number, 0])
    os._exit(0)  # an assertion that failed has left by an exception; see _alive
