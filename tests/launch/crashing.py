"""A training script for the tests that crashes after CRASH_AFTER steps of each of its lives (0: before it trains at all).

It saves at the schedule, and once more than a checkpoint is there it crashes when it has restored the newest.
"""

import os
import sys

import torch

import ckptd_client

after = int(sys.argv[1])
if after == 0:
    raise ValueError("the data set is empty")
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ckpt = ckptd_client.connect()
ckpt.register(model=model, optimizer=optimizer)
done = ckpt.restore()
print(f"rank {os.environ['RANK']} restored {done}", flush=True)
for step in range(done + 1, done + after + 1):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    handle = ckpt.step(step)
    if handle is not None and done == 0:
        handle.wait(60)
sys.exit(7)
