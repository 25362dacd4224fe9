"""A training script for the tests: meets its world by gloo, says so, and works until it is told to end.

Arguments: a directory; rank r ends, with success, when the file end<r> is there.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

directory = Path(sys.argv[1])
assert __name__ == "__main__"
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
rank = dist.get_rank()
print(f"worker rank={rank} world={int(total)} pid={os.getpid()} at={time.time():.3f} argv={sys.argv[1:]}", flush=True)
while not (directory / f"end{rank}").exists():
    time.sleep(0.02)
