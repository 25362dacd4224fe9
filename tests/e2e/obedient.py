"""A trainer for tests that follows a file: "train N" (up to step N), "fail K" (exit, unless it started under that order).

Every rank prints what it restored, and what is durable, with a digest of its model.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import ckptd_client

orders = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(3)
model = nn.parallel.DistributedDataParallel(nn.Linear(300, 200))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)


def digest() -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:16]


with ckptd_client.connect() as ckpt:
    ckpt.register(model=model, optimizer=optimizer)
    step = ckpt.restore()
    print(f"rank {rank} of {dist.get_world_size()} restored step={step} digest={digest()}", flush=True)
    started = orders.read_text()
    while True:
        verb, number = orders.read_text().split()
        if verb == "train" and step < int(number):
            step += 1
            optimizer.zero_grad()
            model(torch.full((4, 300), float(step))).square().mean().backward()
            optimizer.step()
            handle = ckpt.step(step)
            if handle is not None:
                handle.wait(60)
                print(f"rank {rank} saved step={step} digest={digest()}", flush=True)
        elif verb == "fail" and started != orders.read_text():
            os._exit(5 if rank == 1 else 6)
        else:
            time.sleep(0.01)
