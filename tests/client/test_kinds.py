"""Every kind of state that a training has comes back bit for bit, and what can't be stored is refused when it is registered.

Truth is a walk over the live objects by torch and hashlib alone.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as PlacedShard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper
from torch.optim.swa_utils import AveragedModel

from ckptd_client import connect, over, per_rank
from ckptd_client.errors import ConfigError, MissingStateError, UnsupportedStateError
from ckptd_client.placement import Holders
from ckptd_client.regions import blocks_of, like_placed, like_replicated, regions_of
from ckptd_client.restore import by_number
from ckptd_client.union import union
from tests.client.fake_daemon import FakeDaemon


def prints(value: Any) -> Any:
    """What it is made of, tensors by the hash of their bytes."""
    if isinstance(value, torch.Tensor):
        body = value.detach().contiguous().clone().reshape(-1).view(torch.uint8).tolist()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(bytes(body)).hexdigest()
    if isinstance(value, dict):
        return {key: prints(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [prints(part) for part in value]
    return value


class Net(torch.nn.Module):
    """Weights in matrices alone, for the optimizers that want that; one frozen; channels_last."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one = torch.nn.Linear(6, 9, bias=False)
        self.two = torch.nn.Linear(9, 4, bias=False)
        self.frozen = torch.nn.Parameter(torch.randn(3, 5), requires_grad=False)
        self.conv = torch.nn.Conv2d(2, 3, 3, bias=False).to(memory_format=torch.channels_last)
        self.conv.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(torch.tanh(self.one(x)))
        return out


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for n in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 6, generator=torch.Generator().manual_seed(n))).square().mean().backward()
        optimizer.step()


def trained(net: Net) -> list[torch.nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


class EightBit(torch.optim.Optimizer):
    """Moments in bytes and a table, as 8-bit optimizers have them."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["state1"] = torch.zeros(parameter.shape, dtype=torch.uint8)
                state["qmap1"] = torch.randn(256)
                state["absmax1"] = torch.randn(-(-parameter.numel() // 16))
            state["state1"] += (parameter.grad * 100).to(torch.int32).to(torch.uint8)
            parameter -= 0.1 * parameter.grad


OPTIMIZERS: dict[str, Callable[[Net], torch.optim.Optimizer]] = {
    "momentum": lambda net: torch.optim.SGD(trained(net), lr=0.1, momentum=0.9),
    "tensor_lr": lambda net: torch.optim.Adam(trained(net), lr=torch.tensor(0.01), foreach=False),
    "groups": lambda net: torch.optim.AdamW([{"params": [net.two.weight], "lr": 0.5}, {"params": [net.one.weight]}]),
    "all": lambda net: torch.optim.AdamW(net.parameters()),
    "bf16": lambda net: torch.optim.AdamW(trained(net.to(torch.bfloat16)), foreach=False),
    "adafactor": lambda net: torch.optim.Adafactor(trained(net)),
    "muon": lambda net: torch.optim.Muon(trained(net)),
    "eight_bit": lambda net: EightBit(trained(net)),
    "adagrad": lambda net: torch.optim.Adagrad(trained(net)),
    "rmsprop": lambda net: torch.optim.RMSprop(trained(net), centered=True, momentum=0.5),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers(daemon: FakeDaemon, kind: str) -> None:
    first = Net(1)
    one = OPTIMIZERS[kind](first)
    if kind == "bf16":
        first.forward = lambda x: Net.forward(first, x.to(torch.bfloat16))  # type: ignore[method-assign]
    train(first, one)
    with connect("job") as ckpt:
        ckpt.register(net=first, optimizer=one)
        for _ in ckpt.steps(1):
            pass
    expected = prints(first.state_dict()), prints(one.state_dict())
    second = Net(2)
    two = OPTIMIZERS[kind](second)
    ckpt = connect("job")
    ckpt.register(net=second, optimizer=two)
    assert ckpt.restore() == 1
    assert (prints(second.state_dict()), prints(two.state_dict())) == expected
    assert second.conv.weight.is_contiguous(memory_format=torch.channels_last)
    ckpt.close(wait=False)


def test_how_a_module_is_run_does_not_name_its_state(daemon: FakeDaemon) -> None:
    first = Net(1)
    wrapped = copy.deepcopy(first)
    wrapped.one = checkpoint_wrapper(wrapped.one)  # type: ignore[assignment]
    compiled = torch.compile(wrapped)
    one = torch.optim.AdamW(trained(wrapped))
    train(wrapped, one)
    averaged = AveragedModel(wrapped)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with connect("job") as ckpt:
        ckpt.register(net=compiled, optimizer=one, average=averaged, scaler=scaler)
        for _ in ckpt.steps(1):
            pass
    assert {"net.one.weight", "net.two.weight", "optimizer.state.net.one.weight.exp_avg"} <= set(daemon.checkpoints[-1].tensors)
    two = torch.optim.AdamW(trained(first))
    mean, other = AveragedModel(first), torch.amp.GradScaler("cpu", init_scale=2.0)
    ckpt = connect("job")
    ckpt.register(net=first, optimizer=two, average=mean, scaler=other)
    ckpt.restore()
    assert prints(first.state_dict()) == prints(wrapped.state_dict())
    assert prints(two.state_dict()) == prints(one.state_dict())
    assert prints(list(mean.parameters())) == prints(list(averaged.parameters())) and other.get_scale() == 64.0
    ckpt.close(wait=False)


class Tied(torch.nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(3, 4, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_do_not_take_two_tensors(daemon: FakeDaemon) -> None:
    def load(module: Tied) -> None:
        ckpt = connect("job")
        ckpt.register(net=module)
        try:
            ckpt.restore()
        finally:
            ckpt.close(wait=False)

    first, apart = Tied(True), Tied(False)
    with connect("job") as ckpt:
        ckpt.register(net=first)
        for _ in ckpt.steps(1):
            pass
    assert set(daemon.checkpoints[-1].tensors) == {"net.embed.weight"}
    load(apart)  # equal, and each its own
    assert torch.equal(apart.head.weight, first.head.weight) and torch.equal(apart.embed.weight, first.embed.weight)
    again = Tied(True)
    load(again)
    assert torch.equal(again.head.weight, first.head.weight)

    daemon.checkpoints.clear()
    with connect("job") as ckpt:
        ckpt.register(net=Tied(False))
        for _ in ckpt.steps(1):
            pass
    before = prints(again.state_dict())
    with pytest.raises(MissingStateError, match=r"net\.head\.weight.*shares its memory.*net\.embed\.weight"):
        load(again)
    assert prints(again.state_dict()) == before


def test_optimizers_find_their_parameters_by_name(daemon: FakeDaemon) -> None:
    """Another order, and other groups where each comes from one."""
    first = Net(1)
    one = torch.optim.AdamW([first.one.weight, first.two.weight], lr=0.3)
    train(first, one)
    with connect("job") as ckpt:
        ckpt.register(optimizer=one, net=first)
        for _ in ckpt.steps(1):
            pass
    second = Net(2)
    two = torch.optim.AdamW([{"params": [second.two.weight]}, {"params": [second.one.weight]}])
    ckpt = connect("job")
    ckpt.register(optimizer=two, net=second)
    ckpt.restore()
    for name in ("one", "two"):
        parameters = first.get_submodule(name).weight, second.get_submodule(name).weight
        assert prints(one.state[parameters[0]]) == prints(two.state[parameters[1]])
    assert [group["lr"] for group in two.param_groups] == [0.3, 0.3]
    ckpt.close(wait=False)
    fewer = torch.optim.AdamW([second.two.weight])
    ckpt = connect("job")
    ckpt.register(optimizer=fewer, net=second)
    with pytest.raises(MissingStateError, match=r"net\.one\.weight"):
        ckpt.restore()
    ckpt.close(wait=False)


def test_groups_that_were_one_and_are_two_and_the_other_way_round() -> None:
    saved = [{"params": "a\nb", "lr": 1}, {"params": "c", "lr": 2}]
    groups, places = by_number("o", saved, [1, 2], ["c", "b", "a"], False)
    assert groups == [{"params": [0], "lr": 2}, {"params": [1, 2], "lr": 1}] and places == {"c": 0, "b": 1, "a": 2}
    assert by_number("o", saved, [1], ["b"], True) == ([{"params": [0], "lr": 1}], {"b": 0})
    for sizes, names, said in (
        ([2, 1], ["a", "c", "b"], "several groups"),
        ([2], ["a", "b"], "state for parameters.*c"),
        ([4], ["a", "b", "c", "d"], "no state for parameters.*d"),
    ):
        with pytest.raises(MissingStateError, match=said):
            by_number("o", saved, sizes, names, False)
    with pytest.raises(MissingStateError, match="register the modules"):
        by_number("o", saved, [3], None, False)


def test_pieces_of_a_part_become_one() -> None:
    one = {"state": {"a": {"step": 1}}, "param_groups": [{"lr": 0.1, "params": "a\nb"}], "x": (1, [2.5])}
    other = {"state": {"c": {}}, "param_groups": [{"lr": 0.1, "params": "c"}], "x": (1, [2.5])}
    assert union("o", [one, other, one])["param_groups"] == [{"lr": 0.1, "params": "a\nb\nc"}]
    assert union("o", [one, other])["state"] == {"a": {"step": 1}, "c": {}}
    for bad in ({**other, "x": (1, [2])}, {**other, "param_groups": []}, {**other, "x": None}):
        with pytest.raises(MissingStateError, match=r"o\.(x|param_groups)"):
            union("o", [one, bad])


class Odd:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_a_load_that_would_mix_scopes_says_so(daemon: FakeDaemon) -> None:
    with connect("job") as ckpt:
        ckpt.register(a=Odd({"x": 1}), b=per_rank(Odd({"x": 2})))
        for _ in ckpt.steps(1):
            pass
    for parts, said in (
        ({"a": per_rank(Odd({}))}, "'a' was saved as one of the whole world, and is registered as one of each rank"),
        ({"b": Odd({})}, "'b' was saved as one of each rank, and is registered as one of the whole world"),
    ):
        ckpt = connect("job")
        ckpt.register(**parts)
        with pytest.raises(MissingStateError, match=said):
            ckpt.restore()
        ckpt.close(wait=False)
    back = Odd({})
    ckpt = connect("job")
    ckpt.register(b=per_rank(back))
    ckpt.restore()
    assert back.state == {"x": 2}
    with pytest.raises(ConfigError, match="register everything before"):
        ckpt.register(c=Odd({}))
    ckpt.close(wait=False)


def test_a_part_of_others_is_refused(daemon: FakeDaemon) -> None:
    with connect("job") as ckpt:
        for ranks in ([1], [0, 1]):
            with pytest.raises(ConfigError, match="a part of other ranks"):
                ckpt.register(a=over(Odd({}), ranks))
        with pytest.raises(ConfigError, match="each once"):
            ckpt.register(a=over(Odd({}), [0, 0]))


def in_blocks(seed: int) -> dict[str, torch.Tensor]:
    """A ShardedTensor, as FSDP1 has them, and one that lists its chunks, both in two blocks."""
    torch.manual_seed(seed)
    one, two, three, four = torch.randn(2, 2), torch.randn(3, 2), torch.randn(5, 1), torch.randn(5, 3)
    shards = [Shard.from_tensor_and_offsets(block, [start, 0], 0) for block, start in ((one, 0), (two, 2))]
    sharded = sharded_tensor.init_from_local_shards(shards, 5, 2)
    return {"sharded": sharded, "listed": LocalShardsWrapper([three, four], [(0, 0), (0, 1)])}


def test_tensors_in_several_blocks(daemon: FakeDaemon) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        first, second = in_blocks(1), in_blocks(2)
        with connect("job") as ckpt:
            ckpt.save(first, 1).wait(10)
        assert {fqn: len(pieces) for fqn, pieces in daemon.checkpoints[-1].pieces.items()} == {
            "ckptd.state.sharded": 2,
            "ckptd.state.listed": 2,
        }
        ckpt = connect("job")
        assert ckpt.load(second) == 1
        ckpt.close(wait=False)
        for name, tensor in first.items():
            assert prints(blocks_of(tensor)) == prints(blocks_of(second[name])) != prints(blocks_of(in_blocks(2)[name]))
        outside = LocalShardsWrapper([torch.ones(1, 3), torch.ones(4, 3)], [(0, 0), (1, 0)])  # to torch these are columns
        with pytest.raises(UnsupportedStateError, match="outside of the tensor"):
            regions_of(outside, Holders((0,)), 0, "x")
        (_, region) = regions_of(second["listed"], Holders((0, 1)), 0, "x")
        assert (region.shape, region.offsets, region.sizes, region.holders) == ((5, 4), (0, 1), (5, 3), (0,))
    finally:
        dist.destroy_process_group()


class Hidden(torch.Tensor):
    """It hides its bytes."""


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


def freed() -> torch.Tensor:
    """As FSDP leaves what it has gathered."""
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "subclass": lambda: torch.zeros(2).as_subclass(Hidden),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse_rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 1, torch.quint8),
    "less_than_a_byte": lambda: torch.zeros(3, dtype=torch.uint8).view(torch.uint4),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "ragged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "meta": lambda: torch.ones(3, device="meta"),
    "fake": fake,
    "lazy": torch.nn.parameter.UninitializedBuffer,
    "lazy_parameter": torch.nn.parameter.UninitializedParameter,
    "on_its_way": lambda: AsyncCollectiveTensor(torch.ones(2)),
    "freed": freed,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_bytes_of_its_own_is_refused_when_it_is_registered(daemon: FakeDaemon, kind: str) -> None:
    """By its path, in a state dict and in a module."""
    tensor, module = REFUSED[kind](), torch.nn.Module()
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter("a", tensor)
    else:
        module.register_buffer("a", tensor)
    with connect("job") as ckpt:
        for part in (Odd({"a": tensor}), module):
            with pytest.raises(UnsupportedStateError) as caught:
                ckpt.register(odd=part)
            assert caught.value.path == "odd.a"


def test_what_is_offloaded_stays_where_it_is() -> None:
    """FSDP2 with CPUOffloadPolicy: the mesh is of another device than the memory, and here there is none to go to."""
    mesh = DeviceMesh("cuda", [0, 1], _init_backend=False, _rank=0)
    spec = DTensorSpec(mesh, (PlacedShard(0),), TensorMeta(torch.Size((4, 3)), (3, 1), torch.float32))
    parameter = DTensor(torch.ones(2, 3), spec, requires_grad=False)
    placed = like_placed(parameter, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert placed.dtype == torch.bfloat16 and placed.to_local().device.type == "cpu" and placed.shape == (4, 3)  # type: ignore[attr-defined]
    whole = like_replicated(parameter, torch.ones(5))
    assert whole.to_local().device.type == "cpu" and whole.placements == (Replicate(),)  # type: ignore[attr-defined]
    (region,) = regions_of(placed, Holders((0, 1)), 0, "x")
    assert (region.shape, region.offsets, region.sizes) == ((4, 3), (0, 0), (2, 3))
