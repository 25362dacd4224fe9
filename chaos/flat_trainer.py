"""The small job of the flatness check: one rank, a snapshot at every step, each waited for until it is durable.

flat_trainer.py --until N
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

import ckptd_client


def main() -> None:
    """Train. The first steps pass before the schedule is known: nothing is saved of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--until", type=int, required=True, help="checkpoints to make")
    options = parser.parse_args()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = torch.randn(256, 32)
    with ckptd_client.connect() as ckpt:
        ckpt.register(model=model, optimizer=optimizer)
        step, durable = ckpt.restore(), 0
        while durable < options.until:
            step += 1
            for indices, scale in ckpt.batches(len(data), 16):
                (model(data[indices]).square().mean() * scale).backward()
            optimizer.step()
            optimizer.zero_grad()
            handle = ckpt.step(step)
            if handle is not None:
                handle.wait(60.0)
                durable += 1
                sys.stdout.write(f"durable={durable} step={step}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
