"""What a checkpoint writes when a frozen backbone has adapters that train (LoRA): bytes written ÷ bytes changed."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from benchmarks.peers import State
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, events
from benchmarks.state import trained
from benchmarks.worker import digest, tell
from chaos.server import free_port
from examples.train_gpt import GPT, read_text

_RANK: Final = 8
_STEPS: Final = 2
_CONTEXT, _WIDTH, _LAYERS, _HEADS = 128, 768, 15, 12
_SETTLED_SECONDS: Final = 2.0
_WRITTEN = re.compile(r"^ckptd_store_written_bytes_total (\S+)$", re.MULTILINE)


class Adapted(nn.Module):
    """A frozen linear layer, and what is learned beside it."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.base = frozen
        self.down = nn.Parameter(torch.randn(_RANK, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, _RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer does, and a little more."""
        return F.linear(F.linear(x, self.down), self.up) + self.base(x)


def measure(rounds: int) -> list[Result]:
    """All bytes that daemon and coordinator PUT for a checkpoint, with all that comes after it, beside those of what changed.

    The state is a trained model with adapters on every linear layer and their AdamW moments, under the names that torch gives
    them; between two checkpoints the adapters are really trained. Stored raw: no compression makes it look better.
    """
    daemon, coordinator = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {
        "CKPTD_DAEMON__CODEC": "raw",
        "CKPTD_DAEMON__METRICS_BIND": daemon,
        "CKPTD_COORDINATOR__METRICS_BIND": coordinator,
    }
    with Stage() as stage:
        where = stage.deploy(settings)
        told = stage.ranks(save, 1, where=where, rounds=rounds, metrics=[daemon, coordinator])
        check_digests(stage.ranks(load, 1, where=where), check_digests(told))
    saves = events(told, "saved")[0]
    ratios = [event["written"] / event["changed"] for event in saves[1:]]
    notes = {
        "state_bytes": saves[0]["state"],
        "changed_bytes": saves[-1]["changed"],
        "written_bytes": [event["written"] for event in saves],
        "seconds_to_durable": [event["seconds"] for event in saves],
        "bit_equal_after_restore": True,
    }
    what = "bytes written for a checkpoint ÷ bytes changed since the one before, backbone frozen"
    found = Rounds({"ckptd": saves[0]["written"] / saves[0]["changed"]}, {"ckptd": ratios})
    result = from_rounds("incremental", what, "", found, 1.0, notes=notes)
    return [result.holding(at_most("written ÷ changed", max(ratios), 1.05))]


def save(bucket: str, where: dict[str, str], rounds: int, metrics: list[str]) -> None:
    """In the rank: train, save, count."""
    import ckptd_client

    model, optimizer = adapted()
    text = read_text(200_000)
    with ckptd_client.connect(where["job"], socket=Path(where["socket"])) as ckpt:
        written = _written(metrics)
        for number in range(1 + rounds):
            before = state_of(model, optimizer)
            before = {name: tensor.clone() for name, tensor in before.items()}
            _train(model, optimizer, text)
            state = state_of(model, optimizer)
            changed = sum(t.nbytes for name, t in state.items() if name not in before or not torch.equal(t, before[name]))
            begun = time.perf_counter()
            ckpt.save(state, number + 1).wait(300)
            seconds = time.perf_counter() - begun
            time.sleep(_SETTLED_SECONDS)  # what comes after a commit, retiring the one before, is paid for it, too
            total = _written(metrics)
            size = sum(tensor.nbytes for tensor in state.values())
            tell("saved", written=total - written, changed=changed, state=size, seconds=seconds)
            written = total
    tell("digest", who="live", digest=digest(state))


def load(bucket: str, where: dict[str, str]) -> None:
    """In the rank of a new world."""
    import ckptd_client

    model, optimizer = adapted()
    _train(model, optimizer, read_text(200_000))
    state = {name: torch.zeros_like(tensor) for name, tensor in state_of(model, optimizer).items()}
    with ckptd_client.connect(where["job"], socket=Path(where["socket"])) as ckpt:
        if not ckpt.load(state):
            raise RuntimeError("there was nothing to load")
    tell("digest", who="ckptd", digest=digest(state))


def adapted() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The trained model, frozen, with adapters, and what trains those."""
    torch.manual_seed(1)
    model = GPT(_CONTEXT, _WIDTH, _LAYERS, _HEADS)
    model.load_state_dict(trained()[0].weights)
    model.requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.out = Adapted(block.qkv), Adapted(block.out)
        block.mlp[0], block.mlp[2] = Adapted(block.mlp[0]), Adapted(block.mlp[2])
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """All of it by name, in the order of the modules; the moments of a parameter that has none yet are missing."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for parameter, moments in optimizer.state.items():
        found |= {f"optimizer.{names[id(parameter)]}.{key}": value for key, value in moments.items()}
    return found


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, text: torch.Tensor) -> None:
    for _ in range(_STEPS):
        starts = torch.randint(len(text) - _CONTEXT - 1, (1,))
        window = torch.stack([text[start : start + _CONTEXT + 1] for start in starts])
        F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def _written(addresses: list[str]) -> int:
    """Bytes of all successful PUTs so far."""
    total = 0
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
            found = _WRITTEN.search(reply.read().decode())
        total += int(float(found[1])) if found else 0
    return total


if __name__ == "__main__":
    alone(measure, rounds=3)
