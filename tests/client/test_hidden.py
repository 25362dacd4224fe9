"""Copies behind the training: always the state of their step, or none. Truth is a deep copy taken when step() is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckptd_client import hidden
from ckptd_client.errors import SaveError
from tests.client.fake_daemon import FakeDaemon
from tests.client.hiding import Gate, Training, adamw, copied, lbfgs, two

pytestmark = pytest.mark.usefixtures("no_thread_left")


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
