"""The job of the fixed world: one in which everything that a checkpoint must hold shows in the weights at the end.

    exact_trainer.py --until N [--pace SECONDS] …

Dropout and noise from torch's, Python's and numpy's generators, seeded apart for each rank; BatchNorm's buffers; AdamW's
moments; a learning rate that changes with each step. FSDP2 over rows that don't divide. At the end rank 0 prints the sha256 of
everything, gathered and hashed by torch and hashlib alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ckptd_client
from chaos.ledger import GLOBAL_BATCH, LEDGER, NUM_SAMPLES, Book
from chaos.trainer import say


class Net(nn.Module):
    """Uneven rows, a normalization that remembers, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(7, 31), nn.BatchNorm1d(31), nn.Dropout(0.3)
        self.second, self.last = nn.Linear(31, 13), nn.Linear(13, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(torch.tanh(self.norm(self.first(x))))
        y: torch.Tensor = self.last(torch.tanh(self.second(hidden)))
        return y


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--pace", type=float, default=0.0, help="least seconds a step")
    parser.add_argument("--end-file", type=Path, help="not read: --until says it")
    options = parser.parse_args()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    torch.manual_seed(3)
    model = Net()
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=50)
    data = torch.randn(NUM_SAMPLES, 7)
    goal = data.sum(dim=1, keepdim=True).sin()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(100 + rank)

    with ckptd_client.connect() as ckpt:
        ckpt.register(model=model, optimizer=optimizer, schedule=schedule)
        step = ckpt.restore()
        epoch, n = ckpt._member.generation
        say(f"restored rank={rank} step={step} world={world} generation={epoch}-{n} pid={os.getpid()}")
        book = Book(os.environ.get(LEDGER), (epoch, n), rank, world, step)
        while step < options.until:
            step += 1
            started = time.monotonic()
            loss, samples = torch.zeros(1, dtype=torch.float64), list[int]()
            for indices, scale in ckpt.batches(NUM_SAMPLES, GLOBAL_BATCH, 6, 5):
                samples += indices
                noisy = data[indices] * random.uniform(0.9, 1.1) + float(np.random.normal(0.0, 0.01))
                error = (model(noisy) - goal[indices]).square().mean() * scale
                error.backward()
                loss += error.detach() / world
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            book.trained(step, samples)
            dist.all_reduce(loss)
            ckpt.step(step)
            if rank == 0:
                say(f"step={step} loss={loss.item():.17f} world={world}")
            time.sleep(max(0.0, options.pace - (time.monotonic() - started)))
        digest = fingerprint(model, optimizer)
        if rank == 0:
            say(f"trained until step {step} sha256={digest}")
    dist.destroy_process_group()


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """sha256 over all full weights, buffers and optimizer state, and this rank's random generators (a collective)."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(model, optimizer):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)} ".encode())
        digest.update(whole.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr((random.getstate(), np.random.get_state())).encode())
    return digest.hexdigest()


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, parameter in model.named_parameters():
        for key, value in sorted(optimizer.state[parameter].items()):
            if isinstance(value, torch.Tensor):
                yield f"{name}.{key}", value


if __name__ == "__main__":
    main()
