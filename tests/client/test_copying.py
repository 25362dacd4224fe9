"""When a hidden copy is not over where the next optimizer step begins: as with a device, which goes on by itself.

Only the device isn't real here. Its stand-in has its bytes at once, and says that it is over when the test does.
"""

from __future__ import annotations

from typing import Any

import pytest

from ckptd_client.behind import Behind
from ckptd_client.copying import Copying
from ckptd_client.errors import SaveError
from ckptd_client.handle import Handle
from ckptd_client.hidden import Hidden
from tests.client.fake_daemon import FakeDaemon
from tests.client.hiding import Training
from tests.client.training import until


class Late:
    """Has the protocol of `devices.Outgoing`."""

    def __init__(self, written: list[int], fails: bool) -> None:
        self.over, self.written, self.fails = False, written, fails
        self.calls: list[str] = []

    def fence(self) -> bool:
        self.calls.append("fence")
        return self.over

    def finish(self) -> list[int]:
        self.calls.append("finish")
        self.over = True
        if self.fails:
            raise RuntimeError("an illegal memory access was encountered")
        return self.written

    def abandon(self) -> None:
        self.calls.append("abandon")


class Lates:
    """The device's part of each hidden snapshot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[Late] = []
        self.written: list[int] = []
        self.fails = False
        start = Hidden.start

        def late(hidden: Hidden, *arguments: Any) -> Copying:
            host = start(hidden, *arguments).host
            assert isinstance(host, Behind)
            self.all.append(Late(self.written, self.fails))
            return Copying(host, self.all[-1], 0)  # type: ignore[arg-type]

        monkeypatch.setattr(Hidden, "start", late)


@pytest.fixture
def lates(monkeypatch: pytest.MonkeyPatch) -> Lates:
    return Lates(monkeypatch)


def trained(daemon: FakeDaemon) -> Training:
    """Up to the first hidden snapshot, of step 4. Step 2's is in the other slot."""
    daemon.schedule = (2, 2)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way and training.handles[4].hidden and not training.handles[2].hidden
    return training


def onward(training: Training, n: int) -> Handle | None:
    """A step that doesn't look after slots."""
    training.loss()
    training.optimizers[0].step()
    training.truth[n] = training.state()
    return training.ckpt.step(n)


def test_neither_the_optimizer_nor_the_next_step_waits(daemon: FakeDaemon, lates: Lates) -> None:
    training = trained(daemon)
    handle, late = training.handles[4], lates.all[0]
    training.loss()
    training.optimizers[0].step()
    assert late.calls == ["fence"] and not handle.staged  # the host's part was copied to its end, or the bytes would differ
    training.truth[5] = training.state()
    assert training.ckpt.step(5) is None
    assert late.calls == ["fence", "fence"] and training.under_way
    late.over = True
    training.loss()
    training.optimizers[0].step()
    assert handle.staged and not training.under_way and "finish" in late.calls
    handle.wait(10)
    training.ckpt.close()
    training.check(daemon, 2, 4)


def test_the_next_snapshot_waits_for_the_one_before(daemon: FakeDaemon, lates: Lates) -> None:
    training = trained(daemon)
    assert onward(training, 5) is None and not training.handles[4].staged
    sixth = onward(training, 6)  # None if the daemon didn't let go of the other slot in this moment
    assert training.handles[4].staged and "finish" in lates.all[0].calls
    training.ckpt.close()
    assert all("finish" in late.calls for late in lates.all) and len(lates.all) == 1 + (sixth is not None)
    training.check(daemon, 2, 4, *([6] if sixth is not None else []))


@pytest.mark.parametrize("how", ["wait", "save", "close"])
def test_who_needs_it_waits(daemon: FakeDaemon, lates: Lates, how: str) -> None:
    training = trained(daemon)
    if how == "wait":
        training.handles[4].wait(10)
    elif how == "save":
        training.ckpt.save({"w": training.net.first.weight}, 5)
    assert training.handles[4].staged == (how != "close")
    training.ckpt.close()
    assert training.handles[4].durable


def test_a_state_of_another_shape_waits_before_its_arena_goes(daemon: FakeDaemon, lates: Lates) -> None:
    training = trained(daemon)
    arena = training.ckpt._stager.arena
    training.optimizers[0].state[training.net.norm.weight]["more"] = training.net.norm.weight.detach().clone()
    training.ckpt.step(6)
    assert training.handles[4].staged and training.ckpt._stager.arena is not arena
    training.ckpt.close()


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_device_finds_wrong_costs_the_snapshot(daemon: FakeDaemon, lates: Lates, fails: bool) -> None:
    lates.written, lates.fails = [0], fails
    training = trained(daemon)
    late = lates.all[0]
    lates.written, lates.fails = [], False
    late.over = True
    training.step(5)
    assert ("abandon" in late.calls) == fails
    assert not training.under_way and not training.handles[4].staged
    with pytest.raises(SaveError, match="illegal memory access" if fails else "written outside its optimizer"):
        training.handles[4].wait(1)
    until(lambda: len(training.ckpt._stager._free) > 0)
    training.step(6)
    training.ckpt.close()
    training.check(daemon, 2, 6)
    assert [missed.step for missed in daemon.missed] == [4]
