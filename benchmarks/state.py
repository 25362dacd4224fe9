"""What is saved: a byte-level GPT of 107 million parameters, trained for a while with AdamW on the standard library's sources.

Random numbers compress like nothing real, and so does a state that is made of copies of itself. Two successive checkpoints are
made once (two to four minutes on 2 cores) and kept in .tools/bench, named by a hash of what made them.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

from examples.train_gpt import GPT, Block, read_text

State = dict[str, torch.Tensor]
_RECIPE = {
    "context": 128, "width": 768, "layers": 15, "heads": 12, "batch": 4, "lr": 3e-4, "warmup": 20, "seed": 1,
    "text_bytes": 4_000_000, "steps": [60, 64],
}  # fmt: skip
_KEPT = Path(__file__).resolve().parent.parent / ".tools" / "bench"
_KINDS = ("weights", "m", "v")
_WIDTH = 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after ``step`` steps, mapped from files: weights and AdamW's moments ``m`` and ``v`` by parameter, all fp32."""

    step: int
    weights: State
    m: State
    v: State

    def fp32(self) -> State:
        """Weights and optimizer state under one name each; what belongs to a parameter stands together."""
        return {f"{kind}.{name}": getattr(self, kind)[name] for name in self.weights for kind in _KINDS}

    def bf16(self) -> State:
        """The weights as bfloat16, as mixed precision holds them; new memory."""
        return {name: tensor.to(torch.bfloat16) for name, tensor in self.weights.items()}


def trained() -> tuple[Checkpoint, Checkpoint]:
    """Two successive checkpoints, 1.28 GB each as fp32; trained first when they aren't there."""
    place = _KEPT / _key()
    if not place.exists():
        # a process of its own: its memory and its threads are nobody's else
        subprocess.run([sys.executable, "-m", "benchmarks.state"], check=True, cwd=_KEPT.parent.parent)
    return _load(place, _RECIPE["steps"][0]), _load(place, _RECIPE["steps"][1])


def few(total_bytes: int, count: int = 16, rank: int = 0, world: int = 1) -> State:
    """``count`` matrices of ``total_bytes`` fp32 together, or the rows of each that are ``rank``'s in a world of ``world``.

    No byte is used twice. Raises ValueError when two checkpoints don't have as many (2.56 GB).
    """
    rows = total_bytes // (count * _WIDTH * 4)
    mine = rows // world
    starts = [(i * rows + rank * mine) * _WIDTH for i in range(count)]
    return {f"layer{i}.weight": _elements(start, mine * _WIDTH).view(mine, _WIDTH) for i, start in enumerate(starts)}


def small(count: int = 20_000, total_bytes: int = 200_000_000) -> State:
    """``count`` vectors of ``total_bytes`` fp32 together, each with a storage of its own."""
    each = total_bytes // (count * 4)
    whole = _elements(0, count * each)
    return {f"part{i}": whole[i * each : (i + 1) * each].clone() for i in range(count)}


def sharded(total_bytes: int, count: int = 16) -> State:
    """`few` as FSDP2 has them: DTensors on dimension 0 over all ranks. Needs a process group."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    parts = few(total_bytes, count, dist.get_rank(), world)
    return {name: DTensor.from_local(part, mesh, [Shard(0)], run_check=False) for name, part in parts.items()}


def _elements(start: int, count: int) -> torch.Tensor:
    """A piece of all trained fp32 numbers in a row, copied."""
    found = torch.empty(count)
    filled = at = 0
    for checkpoint in trained():
        for tensor in checkpoint.fp32().values():
            begin = max(0, start - at)
            piece = tensor.view(-1)[begin : begin + count - filled]  # empty where this tensor ends before the start
            found[filled : filled + piece.numel()] = piece
            filled, at = filled + piece.numel(), at + tensor.numel()
            if filled == count:
                return found
    raise ValueError(f"only {at * 4 / 1e9:.2f} GB of trained state wanted={(start + count) * 4 / 1e9:.2f} GB")


def _key() -> str:
    """Of the recipe, the model, the text and the torch that trains it."""
    found = hashlib.blake2b(json.dumps([_RECIPE, torch.__version__]).encode(), digest_size=8)
    found.update((inspect.getsource(GPT) + inspect.getsource(Block) + inspect.getsource(_train)).encode())
    found.update(read_text(_RECIPE["text_bytes"]).to(torch.uint8).numpy())
    return found.hexdigest()


def _load(place: Path, step: int) -> Checkpoint:
    """Mapped: pages are read when they are used."""
    kinds = [torch.load(place / f"{step}-{kind}.pt", mmap=True, weights_only=True) for kind in _KINDS]
    return Checkpoint(step, *kinds)


def _train(place: Path) -> None:
    """Weights and AdamW in fp32, with gradients of bfloat16, as mixed precision has them.

    They are computed in fp32: on a processor without instructions for bfloat16 it took over ten minutes otherwise.
    """
    torch.manual_seed(_RECIPE["seed"])
    model = GPT(_RECIPE["context"], _RECIPE["width"], _RECIPE["layers"], _RECIPE["heads"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RECIPE["lr"])
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / _RECIPE["warmup"]))
    text, length = read_text(_RECIPE["text_bytes"]), _RECIPE["context"] + 1
    for step in range(1, _RECIPE["steps"][1] + 1):
        starts = torch.randint(len(text) - length, (_RECIPE["batch"],))
        window = torch.stack([text[start : start + length] for start in starts])
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(parameter.grad.to(torch.bfloat16))
        optimizer.step()
        warm.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"  training the state: step={step} loss={loss.item():.2f}", file=sys.stderr, flush=True)
        if step in _RECIPE["steps"]:
            named = {name: parameter.detach() for name, parameter in model.named_parameters()}
            moments = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
            torch.save(named, place / f"{step}-weights.pt")
            torch.save({name: moment["exp_avg"] for name, moment in moments.items()}, place / f"{step}-m.pt")
            torch.save({name: moment["exp_avg_sq"] for name, moment in moments.items()}, place / f"{step}-v.pt")


def _make() -> None:
    """Train unless it is there by now; what is half made is never seen."""
    _KEPT.mkdir(parents=True, exist_ok=True)
    with (_KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (_KEPT / _key()).exists():
            return
        made = Path(tempfile.mkdtemp(prefix="making-", dir=_KEPT))
        try:
            _train(made)
            made.rename(_KEPT / _key())
        except BaseException:
            shutil.rmtree(made)
            raise


if __name__ == "__main__":
    _make()
