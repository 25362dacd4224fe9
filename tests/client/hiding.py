"""Trainings whose snapshots are copied behind them, and a gate that holds the copying thread back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ckptd_client import behind, connect, moving
from ckptd_client.handle import Handle
from ckptd_client.regions import local_of
from tests.client.fake_daemon import FakeDaemon
from tests.client.training import until

WIDTH = 200  # a weight has 160 kB


class Net(torch.nn.Module):
    """Tied weights, a frozen one, a buffer that forward changes, small tensors, chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.drop = torch.nn.Dropout(0.1)
        self.second = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = self.first.weight
        self.frozen = torch.nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.drop(self.norm(self.first(x)))) @ self.frozen
        return out


def adamw(**options: Any) -> Callable[[Net], list[torch.optim.Optimizer]]:
    return lambda net: [torch.optim.AdamW(net.parameters(), lr=0.01, **options)]


_ADAMW = adamw()


def two(net: Net) -> list[torch.optim.Optimizer]:
    one = torch.optim.SGD([net.first.weight], lr=0.01, momentum=0.9)
    return [one, torch.optim.Adam([p for p in net.parameters() if p is not net.first.weight])]


def lbfgs(net: Net) -> list[torch.optim.Optimizer]:
    return [torch.optim.LBFGS([p for p in net.parameters() if p.requires_grad], max_iter=2, history_size=2)]


def by_name(net: Net, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as it is stored: under the names of the parameters."""
    names = {id(parameter): f"net.{name}" for name, parameter in net.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    return {"state": {order[number]: entries for number, entries in optimizer.state_dict()["state"].items()}}


class Training:
    """One model, its optimizers, and what its state was at each step."""

    def __init__(self, make: Callable[[Net], list[torch.optim.Optimizer]] = _ADAMW, device: str = "cpu") -> None:
        torch.manual_seed(3)
        self.device = device
        self.net = Net().to(device)
        self.optimizers = make(self.net)
        self.truth: dict[int, dict[str, bytes]] = {}
        self.handles: dict[int, Handle] = {}
        self.ckpt = connect("job")
        self.ckpt.register(net=self.net, **{f"optimizer{i}": one for i, one in enumerate(self.optimizers)})
        assert self.ckpt.restore() == 0

    def state(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}

        def walk(value: Any, path: str) -> None:
            if isinstance(value, torch.Tensor):
                found[path] = local_of(value).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            elif isinstance(value, dict):
                for key, part in value.items():
                    walk(part, f"{path}.{key}")
            elif isinstance(value, list):
                for at, part in enumerate(value):
                    walk(part, f"{path}.{at}")

        walk(self.net.state_dict(), "net")
        for i, one in enumerate(self.optimizers):
            walk(by_name(self.net, one), f"optimizer{i}")
        del found["net.second.weight"]  # tied
        return found

    def loss(self) -> torch.Tensor:
        for one in self.optimizers:
            one.zero_grad()
        loss = self.net(torch.randn(8, WIDTH, device=self.device)).square().mean()
        loss.backward()
        return loss

    def step(self, n: int, write: Callable[[], object] = lambda: None, optimize: bool = True) -> None:
        loss = self.loss
        loss()
        write()
        if optimize:
            for one in self.optimizers:
                one.step(loss) if isinstance(one, torch.optim.LBFGS) else one.step()  # type: ignore[arg-type]
        self.truth[n] = self.state()
        stager = self.ckpt._stager
        if optimize:
            stager.let_write()  # a device's copy is over by now, but nobody has looked
        until(lambda: not optimize or stager.arena is None or bool(stager._free) or not self.ckpt._session.connected)
        handle = self.ckpt.step(n)
        if handle is not None:
            self.handles[n] = handle

    @property
    def under_way(self) -> bool:
        under = self.ckpt._stager._under
        return under is not None and under.copy is not None

    def check(self, daemon: FakeDaemon, *steps: int) -> None:
        """The commits are of these steps, each exact in every byte."""
        for checkpoint in daemon.checkpoints:
            stored = {fqn: pieces[0][2] for fqn, pieces in checkpoint.pieces.items()}
            assert stored == self.truth[checkpoint.step], f"step {checkpoint.step}"
        assert [checkpoint.step for checkpoint in daemon.checkpoints] == list(steps)


class Gate:
    """Holds the copying thread back until the copy is waited for, or `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.closed = True
        self.moved = threading.Event()
        move, finish = moving._move, behind.Behind.finish

        def gated(to: int, source: int, count: int) -> None:
            if self.closed and threading.current_thread().name == "ckptd-copy":
                assert self.go.wait(20)
            move(to, source, count)

        def finishing(copy: behind.Behind) -> list[int]:
            self.go.set()
            found = finish(copy)
            self.go.clear()
            return found

        monkeypatch.setattr(moving, "_move", gated)
        monkeypatch.setattr(behind.Behind, "finish", finishing)


def copied(training: Training) -> None:
    """The thread has come to its end by itself."""
    under = training.ckpt._stager._under
    assert under is not None and under.copy is not None and under.copy.host is not None and under.copy.host._thread is not None
    under.copy.host._thread.join(20)
