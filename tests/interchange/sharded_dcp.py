"""One of two ranks that save FSDP-like shards with Distributed Checkpoint."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

SHAPES = {"rows": (7, 5), "columns": (4, 9), "one": (1, 3), "bf16": (33, 2)}


def whole(name: str) -> torch.Tensor:
    """The global tensor."""
    count = torch.Size(SHAPES[name]).numel()
    found = torch.arange(count, dtype=torch.float32).reshape(SHAPES[name]) / 7
    return found.to(torch.bfloat16) if name == "bf16" else found


def main(rank: int, meeting: str, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    placed = {"rows": Shard(0), "columns": Shard(1), "one": Shard(0), "bf16": Replicate()}
    model = {name: distribute_tensor(whole(name), mesh, [placement]) for name, placement in placed.items()}
    state = {"model": model, "plain": torch.ones(3), "step": 11, "groups": [{"lr": 0.5, "params": [0, 1]}]}
    dcp.save(state, checkpoint_id=directory)
    dist.destroy_process_group()
