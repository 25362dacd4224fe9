"""Tensors made of others come back as they were, part by part: optimizers and weights of torchao, and a class of our own.

Truth is what torch's own protocol gives, taken by this file.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchao.optim
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from ckptd_client import connect
from ckptd_client.compound import inner_of, put_together, take_apart
from ckptd_client.errors import MissingStateError, ProtocolError, UnsupportedStateError
from ckptd_client.tree import Collector, Part
from ckptd_client.typed import Compound, TensorRef, decode, encode
from tests.client.fake_daemon import FakeDaemon


def prints(tensor: Any) -> Any:
    """What a tensor is made of, down to bytes."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        return type(tensor), context, {name: prints(getattr(tensor, name)) for name in names}
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def build(kind: str, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """One weight is big enough to have low-bit moments, the other tensors aren't."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 4))
    return net, getattr(torchao.optim, kind)(net.parameters(), lr=0.01)


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.compiler.set_stance("force_eager"):
        optimizer.zero_grad()
        net(torch.randn(4, 64, generator=torch.Generator().manual_seed(3))).square().mean().backward()
        optimizer.step()


def moments(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    return [{key: prints(value) for key, value in optimizer.state[one].items()} for one in net.parameters()]


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_optimizers_of_few_bits(daemon: FakeDaemon, kind: str) -> None:
    first, one = build(kind, 1)
    with connect("job") as ckpt:
        ckpt.register(net=first, optimizer=one)
        for _ in ckpt.steps(2):
            train(first, one)
    held = "optimizer.state.net.0.weight.exp_avg"
    assert held not in daemon.checkpoints[-1].tensors and f"{held}.codes" in daemon.checkpoints[-1].tensors
    second, two = build(kind, 2)
    ckpt = connect("job")
    ckpt.register(net=second, optimizer=two)
    assert ckpt.restore() == 2
    ckpt.close(wait=False)
    assert moments(second, two) == moments(first, one)
    for pair in ((first, one), (second, two)):
        train(*pair)
    assert moments(second, two) == moments(first, one)
    assert list(map(prints, first.parameters())) == list(map(prints, second.parameters()))


def quantized(seed: int, config: Any, bias: bool = True) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128, bias=bias)).to(torch.bfloat16)
    quantize_(net, config)
    return net


def test_quantized_weights_are_filled_in_place_or_refused(daemon: FakeDaemon) -> None:
    first, second = quantized(1, Int8WeightOnlyConfig()), quantized(2, Int8WeightOnlyConfig())
    with connect("job") as ckpt:
        ckpt.register(net=first)
        for _ in ckpt.steps(1):
            pass
        with pytest.raises(UnsupportedStateError, match=r"other\.0\.weight.*plain data"):  # what it says of itself is no data
            connect("other").register(other=quantized(1, Float8WeightOnlyConfig()))
    codes = second[0].weight.qdata
    into: dict[str, Any] = {"weight": second[0].weight}
    assert prints(second[0].weight) != prints(first[0].weight)
    ckpt = connect("job")
    ckpt.register(net=second)
    ckpt.restore()
    ckpt.close(wait=False)
    assert prints(second[0].weight) == prints(first[0].weight) == prints(into["weight"])
    assert second[0].weight.qdata.data_ptr() == codes.data_ptr()
    ckpt = connect("job")
    ckpt.register(net=torch.nn.Sequential(torch.nn.Linear(64, 128)).to(torch.bfloat16))
    with pytest.raises(MissingStateError, match=r"net\.0\.weight.*nothing is converted"):
        ckpt.restore()
    ckpt.close(wait=False)


def test_state_dicts(daemon: FakeDaemon) -> None:
    one, two = quantized(1, Int8WeightOnlyConfig(), False), quantized(2, Int8WeightOnlyConfig(), False)
    with connect("job") as ckpt:
        ckpt.save({"net": dict(one.state_dict())}, 1).wait(10)
    into: dict[str, Any] = {"net": dict(two.state_dict())}
    alone: dict[str, Any] = {}
    for state in (into, alone):
        ckpt = connect("job")
        assert ckpt.load(state) == 1
        ckpt.close(wait=False)
        assert prints(state["net"]["0.weight"]) == prints(one[0].weight)
    assert prints(two[0].weight) == prints(one[0].weight)


def test_under_fsdp2_they_are_refused_when_they_are_registered(daemon: FakeDaemon) -> None:
    """Their blocks are those of each shard; that there will be such states is known before the first step."""
    mesh = DeviceMesh("cpu", [0, 1], _init_backend=False, _rank=0)
    placed = DTensor.from_local(torch.ones(64, 64), mesh, [Shard(0)], run_check=False)
    optimizer = torchao.optim.AdamW8bit([torch.nn.Parameter(placed)])
    with connect("job") as ckpt, pytest.raises(UnsupportedStateError, match="low-bit states of sharded") as caught:
        ckpt.register(optimizer=optimizer)
    assert caught.value.path == "optimizer"


class Pair(torch.Tensor):
    """Two tensors as one."""

    one: torch.Tensor
    two: torch.Tensor

    @staticmethod
    def __new__(cls, one: torch.Tensor, two: torch.Tensor, said: Any) -> Pair:
        made: Pair = torch.Tensor._make_wrapper_subclass(cls, one.shape, dtype=one.dtype)  # type: ignore[attr-defined]
        made.one, made.two, made.said = one, two, said  # type: ignore[attr-defined]
        return made

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["one", "two"], self.said  # type: ignore[attr-defined]

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], said: Any, *_: Any) -> Pair:
        return cls(inner["one"], inner["two"], said["a"] and said)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func}")


def test_what_is_known_of_one_is_followed_while_it_stays_the_same() -> None:
    collector = Collector(0)

    def collected(state: Any) -> Any:
        return collector.collect([Part("p", state)])

    state = {"x": Pair(torch.ones(2), torch.zeros(3), {"a": 1}), "n": 1}
    first = collected(state)
    assert list(first.structure.names) == ["p.x.one", "p.x.two"]
    again = collected({**state, "n": 2})
    assert again.structure is first.structure and again.tensors[1] is state["x"].two  # type: ignore[union-attr]
    node = decode(again.bodies["p"])["x"]
    kind = f"{__name__}:Pair"
    assert node == Compound(kind, [[2], [1], {"a": 1}], {"one": TensorRef("p.x.one"), "two": TensorRef("p.x.two")})
    assert decode(encode(node)) == node
    assert decode(collected({**state, "x": Pair(torch.ones(2), torch.zeros(3), {"a": 5})}).bodies["p"])["x"].context[2] == {
        "a": 5
    }
    assert list(collected({**state, "x": torch.ones(2)}).structure.names) == ["p.x"]

    inner, _ = take_apart(state["x"])
    made = put_together(node, inner, "p.x")
    assert type(made) is Pair and made.one is inner["one"] and inner_of(node, made, "p.x").keys() == inner.keys()
    for bad, said in (
        (Compound("no.such:Thing", [[2], [1], {}], {}), "import the library"),
        (Compound("os:system", [[2], [1], {}], {}), "import the library"),
        (Compound("torch:Tensor", [[2], [1], {}], {}), "import the library"),
        (Compound(kind, [[2], [1], {}], {}), "KeyError"),
        (Compound(kind, 3, {}), "TypeError"),
    ):
        with pytest.raises(MissingStateError, match=said):
            put_together(bad, inner, "p.x")
    for bad in (
        Compound(kind, None, {}),
        Compound(kind, [[2], [1], {"a": 2}], node.tensors),
        Compound("a:B", node.context, {}),
    ):
        with pytest.raises(MissingStateError, match="nothing is converted"):
            inner_of(bad, made, "p.x")
    for malformed in (["x"], ["a:B", 1, {}, 2], ["a:B", 1, [1]], ["a:B", 1, {"one": 2}], [1, 1, {}]):
        with pytest.raises(ProtocolError):
            decode(encode(malformed).replace(encode("l"), encode("s"), 1))


def test_a_class_that_can_not_be_found_again_is_refused() -> None:
    class Local(Pair):
        pass

    with pytest.raises(UnsupportedStateError, match="found by its name") as caught:
        Collector(0).collect([Part("p", {"x": Local(torch.ones(2), torch.zeros(3), {})})])
    assert caught.value.path == "p.x"
