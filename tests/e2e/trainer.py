"""A trainer for tests: odd sizes, uneven and empty shards, and digests of every full tensor that never go through our capture.

    trainer.py --mode plain|ddp|fsdp2 --until N [--pause-file FILE] …

Prints, on rank 0, one JSON object a line: {"event": "restored" | "step" | "end", …}. `digests` maps the name of each full
tensor of the live model and optimizer to its sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import ckptd_client


class Net(nn.Module):
    """Rows that don't divide by 2 or 3, fewer rows than ranks, a 0-dim parameter, a buffer, an odd dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 11)
        self.second = nn.Linear(11, 2)
        self.wide = nn.Linear(5, 1, bias=False)
        self.big = nn.Linear(256, 96, bias=False)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
        self.frozen = nn.Parameter(torch.randn(5).to(torch.bfloat16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        wide = self.wide(hidden[:, :5])
        big = self.big(x.repeat(1, 37)[:, :256]).mean(dim=1, keepdim=True)
        return self.second(hidden).sum(dim=1, keepdim=True) + wide + big


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered by torch itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def digests(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """sha256 of the bytes of every full tensor (a collective under FSDP2)."""
    found = {}
    names = {id(parameter): name.removeprefix("module.") for name, parameter in model.named_parameters()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"model.{name.removeprefix('module.')}"] = sha(full(tensor.detach()))
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                found[f"optimizer.{names[id(parameter)]}.{key}"] = sha(full(value))
    return found


def sha(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + bytes(data.tolist())).hexdigest()


def tell(event: str, **values: object) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"event": event, **values}), flush=True)


def wrap(model: nn.Module, mode: str) -> nn.Module:
    if mode == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if mode == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in (model.first, model.second, model.wide, model.big):
            fully_shard(layer)
        fully_shard(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["plain", "ddp", "fsdp2"], required=True)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument(
        "--pause-file", type=Path, help="before each step wait until this file has at least the step's number in it"
    )
    parser.add_argument("--durable", action="store_true", help="wait for each snapshot")
    parser.add_argument("--scale-mb", type=int, default=0, help="additional frozen parameter of so many MB")
    options = parser.parse_args()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if options.mode != "plain":
        dist.init_process_group("gloo")
    torch.manual_seed(7)
    random.seed(7)
    net = Net()
    if options.scale_mb:
        net.extra = nn.Linear(1024, options.scale_mb * 256, bias=False)
        net.extra.weight.requires_grad_(False)
    model = wrap(net, options.mode)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 / (1 + n / 10))
    data = torch.randn(101, 7, generator=torch.Generator().manual_seed(1))
    goal = data.sum(dim=1, keepdim=True).sin()

    with ckptd_client.connect() as ckpt:
        ckpt.register(model=model, optimizer=optimizer, scheduler=scheduler)
        done = ckpt.restore()
        tell(
            "restored",
            step=done,
            world=world,
            digests=digests(model, optimizer),
            rng=ckpt.rng_restored,
            lr=scheduler.get_last_lr(),
        )
        handles: list[ckptd_client.Handle] = []
        for step in range(done + 1, options.until + 1):
            hold(options.pause_file, step)
            loss = train_step(ckpt, model, optimizer, data, goal, options.batch)
            scheduler.step()
            noise = [torch.rand(1).item(), random.random()]
            saved = ckpt.step(step)
            if saved is not None and options.durable:
                saved.wait(60)
            tell("step", step=step, world=world, loss=loss, noise=noise, staged=saved is not None)
            if saved is not None:
                handles.append(saved)
            for handle in [handle for handle in handles if not handle.open]:
                handles.remove(handle)
                tell("settled", step=handle.step, durable=handle.durable)
        tell("end", step=options.until, digests=digests(model, optimizer))
    if dist.is_initialized():
        dist.destroy_process_group()


def hold(file: Path | None, step: int) -> None:
    """Wait for the test's leave to do this step."""
    import time

    while file is not None and int(file.read_text() or "0") < step:
        time.sleep(0.005)


def train_step(
    ckpt: ckptd_client.Checkpointer,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.Tensor,
    goal: torch.Tensor,
    batch: int,
) -> float:
    """One step over the global batch; the loss is its mean over all samples of all ranks."""
    optimizer.zero_grad()
    total = torch.zeros(1)
    for indices, scale in ckpt.batches(len(data), global_batch=batch, micro_batch=4):
        loss = (model(data[indices]) - goal[indices]).square().mean() * scale
        loss.backward()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    optimizer.step()
    return float(total)


if __name__ == "__main__":
    main()
