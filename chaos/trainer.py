"""The job that is disturbed: FSDP2 over uneven shards, paced, and ended when the campaign says so.

    trainer.py --end-file FILE [--pace SECONDS] [--frozen-mb N]      elastic, until the step that FILE names
    trainer.py --until N                                             undisturbed, for comparison

All in float64: what differs by more than rounding after hundreds of steps in many worlds is wrong. Rank 0 prints each step as
the example does; every rank says what it restored, and which process it is, and keeps a ledger of what it trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import ckptd_client
from chaos.ledger import GLOBAL_BATCH, LEDGER, NUM_SAMPLES, Book

_NEVER = 1 << 40


class Net(nn.Module):
    """Rows that don't divide by two, fewer rows than ranks, and a frozen part that makes uploads last."""

    def __init__(self, frozen_mb: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(7, 33), nn.Linear(33, 17), nn.Linear(17, 1, bias=False)
        self.frozen = nn.Linear(1024, 128 * frozen_mb, bias=False).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return y


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--end-file", type=Path)
    parser.add_argument("--until", type=int, default=_NEVER)
    parser.add_argument("--pace", type=float, default=0.0, help="least seconds a step")
    parser.add_argument("--frozen-mb", type=int, default=1)
    options = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 or "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    model = Net(options.frozen_mb)
    if dist.is_initialized():
        fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 / (1 + n / 50))
    data = torch.randn(NUM_SAMPLES, 7)
    goal = data.sum(dim=1, keepdim=True).sin()

    with ckptd_client.connect() as ckpt:
        ckpt.register(model=model, optimizer=optimizer, schedule=schedule)
        step = ckpt.restore()
        epoch, n = ckpt._member.generation  # nobody but a checker of generations needs it, so the client doesn't show it
        say(f"restored rank={rank} step={step} world={world} generation={epoch}-{n} pid={os.getpid()}")
        book = Book(os.environ.get(LEDGER), (epoch, n), rank, world, step)
        end = agree(options, 0.0)[1]
        while step < end:
            step += 1
            started = time.monotonic()
            loss, samples = 0.0, list[int]()
            for indices, scale in ckpt.batches(NUM_SAMPLES, GLOBAL_BATCH, 8, 5):
                samples += indices
                error = (model(data[indices]) - goal[indices]).square().mean() * scale
                error.backward()
                loss += error.item() / world
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            book.trained(step, samples)  # before the step can become part of a snapshot
            loss, end = agree(options, loss)
            ckpt.step(step)
            if rank == 0:
                say(f"step={step} loss={loss:.12f} world={world}")
            time.sleep(max(0.0, options.pace - (time.monotonic() - started)))
        if rank == 0:
            say(f"trained until step {step}")
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(options: argparse.Namespace, loss: float) -> tuple[float, int]:
    """(the sum of all ranks' losses, the last step as rank 0 has read it)."""
    end = options.until
    if options.end_file is not None and options.end_file.exists():
        end = int(options.end_file.read_text())
    if not dist.is_initialized():
        return loss, end
    both = torch.tensor([loss, float(end) if dist.get_rank() == 0 else 0.0])
    dist.all_reduce(both)
    return both[0].item(), int(both[1].item())


def say(text: str) -> None:
    """One line in one write: several ranks share a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
