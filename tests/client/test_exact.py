"""What one rank saves is what it gets back, bit for bit; what has no safe form, or doesn't fit, is refused."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy
import pytest
import torch

from ckptd_client import connect
from ckptd_client.errors import ConfigError, MissingStateError, RestoreError, UnsupportedStateError
from tests.client.fake_daemon import FakeDaemon
from tests.client.training import Setup, digest, until


def test_training_goes_on_exactly_where_it_was(daemon: FakeDaemon) -> None:
    daemon.schedule = (3, 3)
    first = Setup(1)
    with connect("job") as ckpt:
        ckpt.register(**first.parts())
        assert not ckpt.has_checkpoint
        for n in ckpt.steps(6):
            first.train()
            if n == 6:
                expected = first.digest()
    after = [first.train() for _ in range(3)]
    draws = (torch.rand(3).tolist(), random.random(), numpy.random.rand())
    assert [c.step for c in daemon.checkpoints] == [3, 6]
    assert daemon.finished == [0] and daemon.pidfds == 1 and daemon.missed == []

    second = Setup(2)
    assert second.digest() != expected
    ckpt = connect("job")
    ckpt.register(**second.parts())
    assert ckpt.has_checkpoint and ckpt.restore() == 6
    assert ckpt.rng_restored == "exact"
    assert second.digest() == expected
    assert [second.train() for _ in range(3)] == after
    assert (torch.rand(3).tolist(), random.random(), numpy.random.rand()) == draws
    ckpt.close(wait=False)
    assert daemon.finished == [0]


def test_every_kind_of_tensor_is_bit_exact(daemon: FakeDaemon) -> None:
    def noise(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        count = torch.empty(shape, dtype=dtype).numel() * torch.empty((), dtype=dtype).element_size()
        flat = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
        return flat.view(dtype).view(shape)

    def make() -> dict[str, Any]:
        kinds = (torch.bool, torch.uint8, torch.int16, torch.int64, torch.uint32, torch.float16, torch.bfloat16, torch.float32)
        kinds += (torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)
        state = {str(kind).removeprefix("torch."): noise(kind, 5, 7) for kind in kinds}
        state["transposed"] = noise(torch.bfloat16, 6, 4).t()
        state["strided"] = noise(torch.float32, 9, 8)[::2, 1::3]
        state["scalar"] = noise(torch.float32)
        state["empty"] = torch.empty(0, 4)
        state["sliver"] = noise(torch.float32, 1000)[500:501]
        state["tied"] = state["float32"]
        return state

    def prints(state: dict[str, Any]) -> dict[str, str]:
        return {
            key: hashlib.sha256(bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())).hexdigest()
            for key, value in state.items()
        }

    state = {"a": make(), "epoch": 3, "names": ["x", {"y": (1, 2.5)}]}
    with connect("job") as ckpt:
        handle = ckpt.save(state, 1)
        assert handle.staged
        handle.wait(10)
        assert handle.durable
        state["epoch"] = 4
        state["a"]["float32"].add_(1)
        handle = ckpt.save(state, 2)
        handle.wait(10)
    other = {"a": make(), "epoch": 0, "names": None}
    kept = other["a"]["strided"]
    ckpt = connect("job")
    assert ckpt.load(other) == 2
    assert prints(other["a"]) == prints(state["a"])
    assert other["a"]["strided"] is kept and other["epoch"] == 4 and other["names"] == ["x", {"y": (1, 2.5)}]
    assert "ckptd.state" in daemon.checkpoints[-1].objects and "a.tied" not in daemon.checkpoints[-1].tensors
    ckpt.close(wait=False)


def test_raw_load_adds_what_a_fresh_optimizer_lacks_and_misses_nothing(daemon: FakeDaemon) -> None:
    first = Setup(1)
    first.train()
    with connect("job") as ckpt:
        ckpt.save({"optim": first.optimizer.state_dict()}, 5).wait(10)
    second = Setup(2)
    state = {"optim": second.optimizer.state_dict()}
    ckpt = connect("job")
    assert ckpt.load(state) == 5
    second.optimizer.load_state_dict(state["optim"])
    assert digest(second.optimizer) == digest(first.optimizer)
    ckpt.close(wait=False)
    ckpt = connect("job")
    with pytest.raises(MissingStateError, match="more"):
        ckpt.load({"more": 1})
    ckpt.close(wait=False)


def test_a_mismatch_names_both_shapes_and_changes_nothing(daemon: FakeDaemon) -> None:
    with connect("job") as ckpt:
        ckpt.register(model=torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)))
        for _ in ckpt.steps(1):
            pass
    for other, said in [
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)), r"model\.1\.weight.*\[2, 4\].*\[3, 4\]"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)), r"model\.2\.weight"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4)), r"1\.weight"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).double(), r"model\.0\.weight.*float32.*float64"),
    ]:
        before = digest(other)
        ckpt = connect("job")
        ckpt.register(model=other)
        with pytest.raises(MissingStateError, match=said):
            ckpt.restore()
        assert digest(other) == before
        until(lambda: bool(daemon.reports[-1]))
        ckpt.close(wait=False)
    ckpt = connect("job")
    ckpt.register(somethingelse=torch.nn.Linear(1, 1))
    with pytest.raises(MissingStateError, match="somethingelse"):
        ckpt.restore()
    ckpt.close(wait=False)
    ckpt = connect("job")
    with pytest.raises(RestoreError, match=r"restore\(\)"):
        ckpt.load({})
    ckpt.close(wait=False)


class Odd:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, object()]}, "odd.a.1"),
        ({"a": {"b": torch.zeros(3).to_sparse()}}, "odd.a.b"),
        ({"a": torch.zeros(3, device="meta")}, "odd.a"),
        ({"a": numpy.array([object()])}, "odd.a"),
        ({"f": len}, "odd.f"),
        ({"a": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)}, "odd.a"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, "odd.a.b"),
    ],
)
def test_what_has_no_safe_form_is_refused_at_register(daemon: FakeDaemon, value: Any, path: str) -> None:
    with connect("job") as ckpt:
        with pytest.raises(UnsupportedStateError) as caught:
            ckpt.register(odd=Odd(value))
        assert caught.value.path == path and path in str(caught.value)
        with pytest.raises(ConfigError):
            ckpt.register(nothing=3)


def test_state_that_changes_its_structure_and_outgrows_its_room(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    odd = Odd({"a": [1]})
    with connect("job") as ckpt:
        ckpt.register(odd=odd)
        for n in ckpt.steps(4):
            if n == 2:
                odd.state["a"] = list(range(100_000))
            if n == 3:
                odd.state["t"] = torch.arange(5)
            if n == 4:
                odd.state["bad"] = object()  # too late to refuse: this snapshot is missed, training goes on
    assert [c.step for c in daemon.checkpoints] == [1, 2, 3]
    assert [missed.step for missed in daemon.missed] == [4]
