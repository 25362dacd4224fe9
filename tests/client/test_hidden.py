"""Copies behind the training: always the state of their step, or none. Truth is a deep copy taken when step() is called."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ckptd_client import Checkpointer, behind, connect, hidden
from ckptd_client import session as session_module
from ckptd_client.errors import SaveError
from ckptd_client.handle import Handle
from ckptd_client.regions import local_of
from tests.client.fake_daemon import FakeDaemon

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
        move, finish = behind._move, behind.Behind.finish

        def gated(to: int, source: int, count: int) -> None:
            if self.closed and threading.current_thread().name == "ckptd-copy":
                assert self.go.wait(20)
            move(to, source, count)

        def finishing(copy: behind.Behind) -> list[int]:
            self.go.set()
            found = finish(copy)
            self.go.clear()
            return found

        monkeypatch.setattr(behind, "_move", gated)
        monkeypatch.setattr(behind.Behind, "finish", finishing)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    end = time.monotonic() + 10
    while any(thread.name == "ckptd-copy" for thread in threading.enumerate()):
        assert time.monotonic() < end, "a copying thread is left over"
        time.sleep(0.002)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def copied(training: Training) -> None:
    """The thread has come to its end by itself."""
    under = training.ckpt._stager._under
    assert under is not None and under.copy is not None and under.copy.host is not None and under.copy.host._thread is not None
    under.copy.host._thread.join(20)


@pytest.mark.parametrize("late", [True, False, None])
@pytest.mark.parametrize(
    "make",
    [adamw(foreach=True), adamw(foreach=False), adamw(fused=True), two, lbfgs],
    ids=["foreach", "plain", "fused", "two", "lbfgs"],
)
def test_every_snapshot_is_exact(daemon: FakeDaemon, gate: Gate, make: Any, late: bool | None) -> None:
    """However late or early the copy runs between the end of one step and the writes of the next."""
    daemon.schedule = (1, 1)
    training = Training(make)
    hid = 0
    for n in range(1, 13):
        gate.closed = late if late is not None else n % 2 == 0
        training.step(n)
        hid += training.under_way
        if n in training.handles:
            if training.under_way and not gate.closed and n % 3:
                copied(training)
            assert training.handles[n].staged != training.under_way
    assert hid == 12 - hidden.GAPS - (2 if make is lbfgs else 0)  # whose state grows at first, and is watched anew
    training.ckpt.close()
    training.check(daemon, *range(1, 13))
    assert daemon.missed == []
    assert not any(len(one._optimizer_step_pre_hooks) for one in training.optimizers)


def test_a_regular_writer_is_known_before_anything_is_hidden(daemon: FakeDaemon) -> None:
    """Whether torch counts its writes or not."""
    daemon.schedule = (1, 1)
    training = Training()
    average = training.net.frozen

    def clamp() -> None:
        with torch.no_grad():
            training.net.first.weight.clamp_(-0.05, 0.05)
        average.data.mul_(0.99)

    for n in range(1, 10):
        training.step(n, clamp)
        assert training.under_way == (n > hidden.GAPS)
    training.ckpt.close()
    training.check(daemon, *range(1, 10))
    assert daemon.missed == []
    assert training.ckpt._stager.hidden._exposed == {"net.first.weight", "net.frozen"}


@pytest.mark.parametrize("how", ["counted", "data", "numpy", "load"])
def test_an_unforeseen_write_costs_the_snapshot_never_its_truth(
    daemon: FakeDaemon, gate: Gate, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    weight = training.net.first.weight
    other = {key: value + 1 for key, value in training.net.state_dict().items()}

    def write() -> None:
        with torch.no_grad():
            if how == "counted":
                weight.add_(1)
            elif how == "data":
                weight.data.add_(1)
            elif how == "numpy":
                weight.detach().numpy()[...] += 1
            else:
                training.net.load_state_dict(other)

    for n in range(1, 12):
        training.step(n, write if n == 7 else lambda: None)
    training.ckpt.close()
    training.check(daemon, *(n for n in range(1, 12) if n != 6))
    assert [missed.step for missed in daemon.missed] == [6]
    assert ("net.frozen and 1 more" if how == "load" else "net.first.weight") in daemon.missed[0].reason
    with pytest.raises(SaveError, match=r"net\.f"):
        training.handles[6].wait(1)
    assert not training.handles[6].staged
    assert sum("no snapshot of step 6" in record.message for record in caplog.records) == 1
    assert ("net.frozen" in training.ckpt._stager.hidden._exposed) == (how == "load")


def test_an_uncounted_write_after_the_copy_does_no_harm(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    training = Training()

    def write() -> None:
        copied(training)
        training.net.first.weight.data.add_(1)

    for n in range(1, 9):
        training.step(n, write if n == 7 else lambda: None)
    training.ckpt.close()
    training.check(daemon, *range(1, 9))


def test_after_some_losses_nothing_is_hidden(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    tensors = [training.net.first.weight, training.net.frozen]
    for n in range(1, 5):
        training.step(n)
    tensors += [training.optimizers[0].state[training.net.first.weight][key] for key in ("exp_avg", "exp_avg_sq")]
    for n, tensor in enumerate(tensors, 5):
        training.step(n, lambda tensor=tensor: tensor.data.add_(1))  # type: ignore[misc]
    assert not training.under_way
    training.ckpt.close()
    assert len(daemon.missed) == hidden.LOSSES_MAX
    training.check(daemon, 1, 2, 3, 7, 8)


def test_a_skipped_optimizer_step(daemon: FakeDaemon, gate: Gate) -> None:
    """As GradScaler does; no hook is called, and the copy is joined in the next step()."""
    daemon.schedule = (2, 2)
    training = Training()
    for n in range(1, 9):
        training.step(n, optimize=n % 2 == 0)
        assert training.under_way == (n > hidden.GAPS and n % 2 == 0)
    training.ckpt.close()
    training.check(daemon, 2, 4, 6, 8)


def test_a_state_of_another_shape_is_watched_anew(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    hid = []
    for n in range(1, 11):
        if n == 6:
            training.optimizers[0].state[training.net.frozen]["more"] = training.net.frozen.detach().clone()
        training.step(n)
        hid.append(training.under_way)
    assert hid == [False, False, True, True, True, False, False, True, True, True]
    training.ckpt.close()
    training.check(daemon, *range(1, 11))


def test_waiting_for_a_snapshot_ends_its_copy(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    training.handles[4].wait(10)
    assert training.handles[4].durable
    training.step(5)
    saved = training.ckpt.save({"w": training.net.first.weight}, 6)
    assert saved.staged and training.handles[5].staged
    training.ckpt.close()


def test_a_copy_that_fails_is_told_and_training_goes_on(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    copied(training)
    move = behind._move

    def fails(to: int, source: int, count: int) -> None:
        raise OSError("no such memory")

    monkeypatch.setattr(behind, "_move", fails)
    training.step(5)
    copied(training)
    monkeypatch.setattr(behind, "_move", move)
    training.step(6)
    training.ckpt.close()
    training.check(daemon, 1, 2, 3, 4, 6)
    assert [missed.step for missed in daemon.missed] == [5] and "no such memory" in daemon.missed[0].reason


def test_without_threads_the_copy_is_made_when_it_is_waited_for(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ckptd-copy":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for n in range(1, 7):
        training.step(n)
    training.ckpt.close()
    training.check(daemon, *range(1, 7))


def test_a_fork_in_mid_copy(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    child = os.fork()
    if child == 0:
        done = 1
        try:
            training.ckpt._stager.hidden._before_step()  # an optimizer's own threads would not survive the fork
            done = 0 if training.ckpt.step(5) is None and not training.under_way else 2
            training.ckpt.close()
        finally:
            os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    training.step(5)
    training.ckpt.close()
    training.check(daemon, *range(1, 6))


def test_a_daemon_that_dies_in_mid_copy(daemon: FakeDaemon, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor finds the slot sealed, and doesn't take it away before."""
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    training.handles[3].wait(10)
    assert training.under_way
    stager = training.ckpt._stager
    daemon.stop()
    until(lambda: not training.ckpt._session.connected)
    back = FakeDaemon(daemon.path, (9, 1))
    back.generation, back.arenas = daemon.generation, daemon.arenas
    until(lambda: training.ckpt._session.poll() or training.ckpt._session.connected)
    assert stager.revive() > 0 and back.resumed == 0  # not before the slot is sealed
    training.optimizers[0].step()
    assert training.handles[4].staged
    training.handles[4].wait(10)
    assert back.resumed == 1
    training.check(back, 3, 4)
    training.ckpt.close()
    back.stop()


@pytest.mark.parametrize("wait", [True, False])
def test_close_in_mid_copy(daemon: FakeDaemon, gate: Gate, wait: bool) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    training.ckpt.close(wait=wait)
    assert training.handles[4].staged and not training.under_way
    until(lambda: len(daemon.checkpoints) == 4)
    training.check(daemon, *range(1, 5))


def test_the_daemon_is_told_how_long_training_stood_still(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (4, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    copied(training)
    finish = behind.Behind.finish

    def slow(copy: behind.Behind) -> list[int]:
        time.sleep(0.3)  # what is measured
        return finish(copy)

    monkeypatch.setattr(behind.Behind, "finish", slow)
    training.step(5)
    training.ckpt.close()
    assert daemon.stalls[4] >= 0.3 and daemon.stalls[5] >= 0.3


def test_without_a_registered_optimizer_nothing_is_hidden(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with connect("job") as ckpt:
        ckpt.register(net=net)
        for _ in ckpt.steps(5):
            optimizer.zero_grad()
            net(torch.randn(8, WIDTH)).mean().backward()
            optimizer.step()
            until(lambda: ckpt._stager.arena is None or bool(ckpt._stager._free))
        assert ckpt._stager.hidden.curious is False
    assert len(daemon.checkpoints) == 5
    assert isinstance(ckpt, Checkpointer)
