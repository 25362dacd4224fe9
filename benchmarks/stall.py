"""How long a scheduled snapshot blocks a training, in a real loop, beside a warm copy of the same bytes and DCP's `async_save`.

The state is copied behind the next forward and backward. What is blocked is timed from outside: `step(n)`, and what happens
between the first and the last of the hooks that the optimizer calls before the step after that.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import gelu

from benchmarks.peers import Dcp, FileStorage, Memcpy, State, empty_trash
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import interleave
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, rounds_of
from benchmarks.worker import digest, tell

_WIDTH, _LAYERS, _BATCH = 3000, 9, 16  # 81 M parameters: 0.97 GB with AdamW's moments
_EVERY = 3
_WAIT_SECONDS = 300.0


def measure(rounds: int) -> list[Result]:
    """One trainer of one thread; the other core is there for the copy, as a node's spare cores are."""
    with Stage() as stage:
        where = stage.deploy({"CKPTD_COORDINATOR__EVERY_STEPS": str(_EVERY), "CKPTD_DAEMON__CODEC": "raw"})
        told = stage.ranks(train, 1, where=where, scratch=stage.scratch(), rounds=rounds)
        check_digests(stage.ranks(restore, 1, where=where), check_digests(told))
    what = "seconds a training is blocked by a scheduled snapshot, 0.97 GB with AdamW"
    notes = {"parameters": _LAYERS * _WIDTH**2, "threads": 1, "bit_equal_after_restore": True}
    result = from_rounds("stall", what, "s", rounds_of(told), "memcpy", notes=notes)
    assert result.ratio_to_limit is not None and result.ratio_to_best_peer is not None
    return [
        result.holding(
            at_most("÷ memcpy", result.ratio_to_limit, 0.10), at_most("÷ best peer", result.ratio_to_best_peer, 0.10)
        )
    ]


class Training:
    """Layers as wide as those of a language model, AdamW on the CPU."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.ModuleList(torch.nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(_LAYERS))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        x = torch.randn(_BATCH, _WIDTH)
        for layer in self.model:
            x = x + gelu(layer(x))
        x.square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> State:
        """All its tensors, by name; not copies."""
        found = dict(self.model.state_dict())
        for number, of_one in self.optimizer.state_dict()["state"].items():
            found.update({f"{number}.{key}": value for key, value in of_one.items()})
        return found


class Hooks:
    """Times what other hooks do before an optimizer step: one comes before them, one after."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.seconds = self._begun = 0.0
        optimizer.register_step_pre_hook(self._first)

    def close_with(self) -> None:
        """What is registered by now is timed."""
        self._optimizer.register_step_pre_hook(self._last)

    def _first(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _last(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._begun


def train(bucket: str, scratch: str, where: dict[str, str], rounds: int) -> None:
    """In the rank."""
    import ckptd_client

    training = Training(1)
    hooks = Hooks(training.optimizer)
    ckpt = ckptd_client.connect(where["job"], socket=Path(where["socket"]))
    ckpt.register(model=training.model, optimizer=training.optimizer)
    hooks.close_with()
    done = ckpt.restore()
    training.step()
    state = training.state()
    kept = ""

    def ours(number: int) -> float:
        nonlocal done, kept
        empty_trash()
        handle = None
        while handle is None:
            training.step()
            if number == rounds + 2:
                kept = digest(training.state())  # of the last one, before it is saved
            done += 1
            begun = time.perf_counter()
            handle = ckpt.step(done)
            seconds = time.perf_counter() - begun
        training.step()
        seconds += hooks.seconds
        assert handle.staged
        handle.wait(_WAIT_SECONDS)
        return seconds

    def other(contender: Any, number: int) -> float:
        training.step()
        contender.before()
        begun = time.perf_counter()
        contender.start(number)
        seconds = time.perf_counter() - begun
        contender.finish()
        return seconds

    thread = Dcp("dcp async_save thread", state, FileStorage(f"{scratch}/thread"), "thread")
    process = Dcp("dcp async_save process", state, FileStorage(f"{scratch}/process"), "process")
    others = {one.name: one for one in (Memcpy(state), thread, process)}
    turns = {name: (lambda number, one=one: other(one, number)) for name, one in others.items()}
    found = interleave({"memcpy": turns.pop("memcpy"), "ckptd": ours, **turns}, rounds)
    tell("rounds", first=found.first, raw=found.raw)
    ours(rounds + 2)
    tell("digest", who="live", digest=kept)
    for one in others.values():
        one.close()
    ckpt.close(wait=False)


def restore(bucket: str, where: dict[str, str]) -> None:
    """In a new rank."""
    import ckptd_client

    training = Training(2)
    ckpt = ckptd_client.connect(where["job"], socket=Path(where["socket"]))
    ckpt.register(model=training.model, optimizer=training.optimizer)
    assert ckpt.restore() > 0
    tell("digest", who="ckptd", digest=digest(training.state()))
    ckpt.close(wait=False)


if __name__ == "__main__":
    alone(measure, rounds=5)
