"""One training, run in many ways: the same samples in every step, however many ranks share them.

    mesh_trainer.py --mode plain|ddp|fsdp2|hsdp|tp|pp --until N [--own]

Prints what `trainer.py` prints. Losses are of the whole batch; digests of full tensors, gathered by torch alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ckptd_client
from tests.e2e.trainer import full, sha, tell

BATCH = 12  # shared by 1, 2, 3 or 4
SAMPLES = torch.randn(997, 7, generator=torch.Generator().manual_seed(11))


class Net(nn.Module):
    """Rows that no number of ranks divides; under FSDP2 over TP torch's own offsets of ``first`` are wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.first = nn.Linear(7, 11)
        self.second = nn.Linear(11, 5)
        self.third = nn.Linear(5, 1)
        self.frozen = nn.Parameter(torch.randn(5, 3).to(torch.bfloat16), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def front(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(self.norm(x)))

    def back(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.third(torch.tanh(self.second(hidden)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.front(x))


class Own:
    """A state that is another one on each rank."""

    def __init__(self, rank: int) -> None:
        self.rank, self.count = rank, torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["rank"] == self.rank
        self.count = state["count"]


class Run:
    """A model in one mode. ``dp`` is the mesh of the ranks that share each batch, None for all."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.rank = rank
        self.dp: DeviceMesh | None = None
        self.net = net = Net()
        self.model: nn.Module = net
        held: DeviceMesh | list[int] | None = None
        if mode == "ddp":
            self.model = nn.parallel.DistributedDataParallel(net)
        elif mode == "fsdp2":
            _shard(net, init_device_mesh("cpu", (world,)))
        elif mode == "hsdp":
            _shard(net, init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")))
        elif mode == "tp":
            held = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
            parallelize_module(net, held["tp"], {"first": ColwiseParallel(use_local_output=False), "second": RowwiseParallel()})
            _shard(net, held["dp"])  # what is not parallelised is on "dp" alone
            self.dp = held["dp"]
        elif mode == "pp":
            held, self.dp = [rank], init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "pp"))["dp"]
            for name in ("norm", "first") if rank else ("second", "third", "frozen"):
                delattr(net, name)
            if rank:
                del net.seen
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.03, foreach=False)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if held is not None:
            self.parts = {name: ckptd_client.over(part, held) for name, part in self.parts.items()}

    def step(self, indices: list[int]) -> float:
        x = SAMPLES[indices]
        goal = x.sum(dim=1, keepdim=True).sin()
        self.optimizer.zero_grad()
        loss = self._pipeline(x, goal) if self.mode == "pp" else (self.model(x) - goal).square().mean()
        if self.mode != "pp":
            loss.backward()
        self.optimizer.step()
        if hasattr(self.net, "seen"):
            self.net.seen += 1
        total = loss.detach().clone().reshape(1)
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= 1 if self.mode == "pp" else dist.get_world_size()
        return float(total)

    def _pipeline(self, x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Rank 0 has the front, rank 1 the back; what crosses is the hidden layer and its gradient."""
        if self.rank == 0:
            hidden, grad = self.net.front(x), torch.empty(BATCH, 11)
            dist.send(hidden.detach(), 1)
            dist.recv(grad, 1)
            hidden.backward(grad)
            return torch.zeros(())
        hidden = torch.empty(BATCH, 11)
        dist.recv(hidden, 0)
        loss = (self.net.back(hidden.requires_grad_()) - goal).square().mean()
        loss.backward()
        assert hidden.grad is not None
        dist.send(hidden.grad, 0)
        return loss.detach()

    def digests(self) -> dict[str, str]:
        found = {}
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        for name, tensor in [*self.net.named_parameters(), *self.net.named_buffers()]:
            found[f"model.{name}"] = sha(full(tensor.detach()))
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                found[f"optimizer.{names[id(parameter)]}.{key}"] = sha(full(value))
        if self.mode == "pp":
            every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(every, found)
            found = {name: digest for one in every for name, digest in one.items()}
        return found


def _shard(net: Net, mesh: DeviceMesh) -> None:
    for layer in (net.norm, net.first, net.second, net.third):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["plain", "ddp", "fsdp2", "hsdp", "tp", "pp"], required=True)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--own", action="store_true", help="with a state per rank")
    options = parser.parse_args()
    if options.mode != "plain":
        dist.init_process_group("gloo")
    torch.manual_seed(7)
    run = Run(options.mode)
    own = Own(run.rank)
    with ckptd_client.connect() as ckpt:
        ckpt.register(**run.parts)
        if options.own:
            ckpt.register(own=ckptd_client.per_rank(own))
        done = ckpt.restore()
        assert own.count.tolist() == [done * (run.rank + 1) * options.own, done * options.own]
        tell("restored", step=done, digests=run.digests())
        for n in range(done + 1, options.until + 1):
            ((indices, _),) = ckpt.batches(len(SAMPLES), BATCH, mesh=run.dp)
            loss = run.step(indices)
            own.count += torch.tensor([run.rank + 1, 1])
            saved = ckpt.step(n)
            tell("step", step=n, loss=loss)
            if saved is not None:
                saved.wait(60)
        tell("end", step=options.until, digests=run.digests())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
