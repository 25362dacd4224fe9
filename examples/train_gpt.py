"""Train a small GPT on the Python standard library's own sources, with checkpoints that outlive its machines.

    CKPTD_JOB=gpt python examples/train_gpt.py                              # one process, beside a running daemon
    ckptd-run --nproc-per-node 2 examples/train_gpt.py --parallel fsdp2     # two, restarted and resumed by themselves

Lines marked with (ckptd) are all that ckptd needs.
"""

import argparse
import math
import os
import sysconfig
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ckptd_client


class Block(nn.Module):
    """One layer: attention over what came before, then a small network; each adds to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Bytes in, scores of each next byte out."""

    def __init__(self, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--global-batch", type=int, default=24, help="samples per step, whatever the number of ranks")
    parser.add_argument("--micro-batch", type=int, default=4, help="most samples in memory at once, per rank")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--text-bytes", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0, help="least seconds a step: to have the time to watch")
    return parser.parse_args()


def read_text(count: int) -> Tensor:
    """The first bytes of the standard library, its files in the order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[:count]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def main() -> None:
    args = parse()
    # torchrun and ckptd-run say which rank this is; without them it is the only one
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if gpu else "gloo")

    torch.manual_seed(args.seed)  # the same on all ranks: each starts from the same whole model
    model: nn.Module = GPT(args.context, args.width, args.layers, args.heads).to(device)
    if dist.is_initialized() and args.parallel == "fsdp2":
        mesh = init_device_mesh(device.type, (world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif dist.is_initialized():
        model = DistributedDataParallel(model)

    def rate(done: int) -> float:
        """Up in a line, down in half a cosine."""
        return min((done + 1) / args.warmup, 0.55 + 0.45 * math.cos(math.pi * min(done / args.steps, 1.0)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    text = read_text(args.text_bytes).to(device)
    samples = (len(text) - 1) // args.context

    with ckptd_client.connect() as ckpt:  # (ckptd)
        ckpt.register(model=model, optimizer=optimizer, schedule=schedule)  # (ckptd)
        restored = ckpt.restore()  # (ckptd) the number of steps that are done: 0 in a new job
        if rank == 0:
            print(f"restored step={restored} world={world}" if restored else f"starting world={world}", flush=True)

        for step in ckpt.steps(args.steps):  # (ckptd) the steps to do; saves as the coordinator schedules it
            begun = time.monotonic()
            total = torch.zeros((), device=device)
            # (ckptd) this rank's share of the global batch; with `scale`, gradients are those of the mean over all of it
            for indices, scale in ckpt.batches(samples, args.global_batch, args.micro_batch, args.seed):
                window = torch.stack([text[i * args.context : (i + 1) * args.context + 1] for i in indices])
                scores = model(window[:, :-1])
                loss = scale * F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())
                loss.backward()  # DDP and FSDP average gradients over the ranks
                total += loss.detach() / world
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            if dist.is_initialized():
                dist.all_reduce(total)
            if rank == 0:
                print(f"step={step} loss={total.item():.6f} world={world}", flush=True)
            time.sleep(max(0.0, args.pace - (time.monotonic() - begun)))

    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
