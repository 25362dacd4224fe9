"""PyTorch Distributed Checkpoint over ckptd: save from FSDP2 in the background, go on in another run on any number of ranks.

    ckptd coordinator --job tiny --store /tmp/checkpoints & ckptd daemon --store /tmp/checkpoints &
    torchrun --nproc-per-node 2 examples/dcp_fsdp.py --steps 6
    torchrun --nproc-per-node 1 examples/dcp_fsdp.py --steps 9     # goes on from step 6

Lines marked with (ckptd) are those that differ from FileSystemWriter and FileSystemReader.
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from ckptd_client.dcp import CkptdReader, CkptdWriter  # (ckptd)


class App:
    """The state of the training, as DCP's Stateful."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.step = model, optimizer, 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = state["step"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", default="tiny")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--every", type=int, default=3)
    args = parser.parse_args()

    dist.init_process_group("cpu:gloo")
    saves = dist.new_group()  # DCP plans in the background: not among the training's own collectives
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    fully_shard(model)
    app = App(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    try:
        dcp.load({"app": app}, storage_reader=CkptdReader(args.job))  # (ckptd) the newest checkpoint
        print(f"rank {dist.get_rank()}: goes on from step {app.step}")
    except CheckpointException as error:
        if "no checkpoint to read" not in str(error):
            raise

    saving = None
    while app.step < args.steps:
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(app.step))
        app.optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        app.optimizer.step()
        app.step += 1
        if app.step % args.every == 0:
            if saving is not None:
                saving.result()  # raises when it is not durable
            writer = CkptdWriter(args.job, step=app.step)  # (ckptd)
            saving = dcp.async_save({"app": app}, storage_writer=writer, process_group=saves)
        print(f"rank {dist.get_rank()}: step {app.step} loss {loss.item():.6f}")
    if saving is not None:
        saving.result()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
