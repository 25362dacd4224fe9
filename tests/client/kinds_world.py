"""What the rank processes of test_kinds_ranks.py run: states of many blocks a rank, saved by 3 ranks, loaded by 2 and by 1.

What a tensor is to be comes from a seed, what FSDP has from FSDP's own full state dicts: never from what ckptd says of it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharded_tensor import Shard as Block
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

from ckptd_client import connect, over
from ckptd_client.errors import UnsupportedStateError

WIDE = (9, 10)
Cut = tuple[tuple[int, int], tuple[int, int]]  # offsets, sizes
_alive: list[Any] = []  # see ranks.py: no model is destroyed before the process ends


class Listed(torch.Tensor):
    """A tensor over many ranks of which each knows its chunks, and nothing else can be done with it."""

    _blocks: dict[tuple[int, int], torch.Tensor]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], blocks: dict[tuple[int, int], torch.Tensor]) -> Listed:
        made: Listed = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)  # type: ignore[attr-defined]
        made._blocks = blocks
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func}")

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(at), block.shape) for at, block in self._blocks.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        return self._blocks[index.offset[0], index.offset[1]]


def whole(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the tensor of that name is."""
    return torch.randn(WIDE, generator=torch.Generator().manual_seed(len(name))).to(dtype)


def dealt(grid: tuple[int, int], rank: int, world: int) -> list[Cut]:
    """The rectangles of a grid that are dealt to a rank: uneven, out of order, for some ranks none."""
    heights, widths = (torch.arange(n).tensor_split(parts) for n, parts in zip(WIDE, grid, strict=True))
    cuts = [((int(r[0]), int(c[0])), (len(r), len(c))) for r in heights for c in widths]
    return cuts[::-1][rank::world]


def cut(tensor: torch.Tensor, at: Cut) -> torch.Tensor:
    (row, column), (rows, columns) = at
    return tensor[row : row + rows, column : column + columns].clone()


def in_blocks(rank: int, world: int, grid: tuple[int, int], filled: bool) -> dict[str, torch.Tensor]:
    """Both kinds, with their values, or with others that a load replaces; and what torchrec has: chunks under a DTensor."""

    def body(name: str, at: Cut, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        found = cut(whole(name, dtype), at)
        return found if filled else torch.full_like(found, -7.0)

    mine = dealt(grid, rank, world)
    shards = [Block.from_tensor_and_offsets(body("sharded", at), list(at[0]), rank) for at in mine]
    half = WIDE[0] // world, WIDE[0] // world if rank < world - 1 else WIDE[0] - WIDE[0] // world * (world - 1)
    columns = [((rank * half[0], start), (half[1], size)) for start, size in ((0, 3), (3, 7))]
    wrapper = LocalShardsWrapper([body("wrapped", at) for at in columns], [at[0] for at in columns])
    mesh = DeviceMesh("cpu", list(range(world)))
    return {
        "sharded": sharded_tensor.init_from_local_shards(shards, *WIDE),
        "listed": Listed(WIDE, {at[0]: body("listed", at, torch.bfloat16) for at in mine}),
        "wrapped": DTensor.from_local(wrapper, mesh, [Shard(0)], run_check=False, shape=torch.Size(WIDE), stride=(WIDE[1], 1)),
    }


def check_blocks(found: dict[str, torch.Tensor], rank: int, world: int, grid: tuple[int, int]) -> None:
    expected = in_blocks(rank, world, grid, filled=True)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for one, other in zip(found["sharded"].local_shards(), expected["sharded"].local_shards(), strict=True):  # type: ignore[attr-defined]
        pairs.append((one.tensor, other.tensor))
    for at, block in expected["listed"]._blocks.items():  # type: ignore[attr-defined]
        pairs.append((found["listed"]._blocks[at], block))  # type: ignore[attr-defined]
    wrapped = (tensor.to_local().local_shards() for tensor in (found["wrapped"], expected["wrapped"]))  # type: ignore[attr-defined]
    pairs += zip(*wrapped, strict=True)
    assert len(pairs) >= 2 and all(torch.equal(one, other) for one, other in pairs), pairs


def digest(values: Any) -> str:
    """Of a tree of plain tensors and numbers."""
    if isinstance(values, torch.Tensor):
        return hashlib.sha256(repr((values.dtype, values.tolist())).encode()).hexdigest()
    if isinstance(values, dict):
        return repr({key: digest(values[key]) for key in sorted(values, key=str)})
    if isinstance(values, (list, tuple)):
        return repr([digest(one) for one in values])
    return repr(values)


class Fsdp1:
    """A model under FSDP1 that has been trained; ``dtensors`` is what its state is of."""

    def __init__(self, seed: int, dtensors: bool) -> None:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        mesh = DeviceMesh("cpu", list(range(dist.get_world_size()))) if dtensors else None
        self.model = FullyShardedDataParallel(net, device_id=torch.device("cpu"), device_mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        for _ in range(2):
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 5)).square().mean().backward()
            self.optimizer.step()
        _alive.append(self)

    def state(self) -> dict[str, Any]:
        """What its user gives to `save`."""
        kinds = StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(), ShardedOptimStateDictConfig()
        with FullyShardedDataParallel.state_dict_type(self.model, *kinds):
            optim = FullyShardedDataParallel.optim_state_dict(self.model, self.optimizer)
            return {"model": dict(self.model.state_dict()), "optim": optim}

    def load(self, state: dict[str, Any]) -> None:
        kinds = StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(), ShardedOptimStateDictConfig()
        with FullyShardedDataParallel.state_dict_type(self.model, *kinds):
            self.model.load_state_dict(state["model"])
            optim = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optimizer, state["optim"])
            self.optimizer.load_state_dict(optim)

    def truth(self) -> str:
        """As FSDP itself puts it together."""
        kinds = StateDictType.FULL_STATE_DICT, FullStateDictConfig()
        with FullyShardedDataParallel.state_dict_type(self.model, *kinds):
            optim = FullyShardedDataParallel.optim_state_dict(self.model, self.optimizer)
            return digest([dict(self.model.state_dict()), optim["state"], optim["param_groups"]])


def many_blocks(rank: int, world: int, truth: dict[str, Any]) -> None:
    """Saved by 3 ranks; then loaded by 2."""
    grid = (3, 2) if world == 3 else (2, 5)
    state: dict[str, Any] = in_blocks(rank, world, grid, filled=world == 3)
    flat, placed = Fsdp1(world, dtensors=False), Fsdp1(10 + world, dtensors=True)
    state |= {"flat": flat.state(), "placed": placed.state()}
    assert type(state["flat"]["model"]["0.weight"]).__name__ == "ShardedTensor"
    assert isinstance(state["placed"]["model"]["0.weight"], DTensor)
    with connect("job") as ckpt:
        if world == 3:
            try:
                ckpt.register(optimizer=flat.optimizer)
            except UnsupportedStateError as error:
                assert error.path == "optimizer" and "FSDP1" in str(error)
            else:
                raise AssertionError("an optimizer of FSDP1 was registered")
            truth.update(flat=flat.truth(), placed=placed.truth())
            ckpt.save(state, 1).wait(30)
            return
        assert ckpt.load(state) == 1
    check_blocks(state, rank, world, grid)
    flat.load(state["flat"])
    placed.load(state["placed"])
    assert (flat.truth(), placed.truth()) == (truth["flat"], truth["placed"])


def alone(rank: int, world: int, truth: dict[str, Any]) -> None:
    """Loaded by a process without a process group, which sees whole tensors."""
    state: dict[str, Any] = {}
    with connect("job") as ckpt:
        assert ckpt.load(state) == 1
    for name, dtype in (("sharded", torch.float32), ("listed", torch.bfloat16), ("wrapped", torch.float32)):
        assert torch.equal(state[name], whole(name, dtype)), name
    for name in ("flat", "placed"):
        assert (
            digest([state[name]["model"], state[name]["optim"]["state"], state[name]["optim"]["param_groups"]]) == truth[name]
        )


class Net(nn.Module):
    """Two stages: ``front`` and ``back``. A rank may have one of them alone."""

    def __init__(self, stages: Iterable[str]) -> None:
        super().__init__()
        for name, sizes in (("front", (6, 7)), ("back", (7, 3))):
            if name in stages:
                self.add_module(name, nn.Linear(*sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = torch.tanh(stage(x))
        return x


class Staged:
    """A model with FSDP2 whose parameters are in the CPU's memory; ``group`` holds this rank's stages of it alike."""

    def __init__(self, stages: list[str], group: dist.ProcessGroup, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = Net(stages)
        mesh = DeviceMesh.from_group(group, "cpu")
        fully_shard(self.net, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))  # pinning asks for a device
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1, foreach=False)
        self.inputs = 6 if "front" in stages else 7
        _alive.append(self)

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.net(torch.randn(4, self.inputs)).square().mean().backward()
        self.optimizer.step()

    def truth(self) -> dict[str, str]:
        """All ranks' tensors by name, put together by torch."""
        found = {}
        for name, parameter in self.net.named_parameters():
            state = {key: _full(value) for key, value in self.optimizer.state[parameter].items()}
            found[name] = digest([_full(parameter), state])
        every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(every, found)
        return {name: print_ for one in every for name, print_ in one.items()}


def _full(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def by_groups(rank: int, world: int, truth: dict[str, Any]) -> None:
    """Two stages, of rank 0 and of ranks 1 and 2, become one model on 2 ranks, and other stages again."""
    known = [truth]
    dist.broadcast_object_list(known)  # who sat a world out learns what became of it
    truth.update(known[0])
    if world == 3:
        # No mesh twice: torch keeps what it knows of one of the same ranks, with the group that is no more.
        front, back = ((0, 2), (1,)) if truth else ((0,), (1, 2))
        groups = [dist.new_group(ranks) for ranks in (front, back)]
        held, stages = (groups[0], ["front"]) if rank in front else (groups[1], ["back"])
    else:
        assert dist.group.WORLD is not None
        held, stages = dist.group.WORLD, ["front", "back"]
    staged = Staged(stages, held, 5 + rank)
    done = truth.get("steps", 0)
    with connect("job") as ckpt:
        ckpt.register(model=over(staged.net, held), optimizer=over(staged.optimizer, held))
        for n in ckpt.steps(done + 2):
            if done and n == done + 1:
                assert staged.truth() == truth["staged"]
                assert {parameter.to_local().device.type for parameter in staged.net.parameters()} == {"cpu"}  # type: ignore[attr-defined]
            staged.train()
            truth["steps"] = n
        assert truth["steps"] == done + 2
    assert staged.truth() != truth.get("staged")
    truth["staged"] = staged.truth()
    assert sorted(truth["staged"]) == ["back.bias", "back.weight", "front.bias", "front.weight"]


PHASES: list[tuple[int, Callable[[int, int, dict[str, Any]], None], str]] = [
    (3, many_blocks, "blocks"),
    (2, many_blocks, "blocks"),
    (1, alone, "blocks"),
    (3, by_groups, "groups"),
    (2, by_groups, "groups"),
    (3, by_groups, "groups"),
]


def main(rank: int, directory: str) -> None:
    """All phases, in the place of ``rank`` where it takes part."""
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    truths: dict[str, dict[str, Any]] = {}
    for number, (world, phase, job) in enumerate(PHASES):
        if rank >= world:
            continue  # its next world waits for it
        truth = truths.setdefault(job, {})
        os.environ.update(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + number))
        os.environ["CKPTD_SOCKET"] = f"{directory}/{job}.sock"
        if world > 1:
            method = f"file://{directory}/{number}"
            dist.init_process_group("gloo", init_method=method, timeout=timedelta(seconds=120), rank=rank, world_size=world)
        phase(rank, world, truth)
        if world > 1:
            dist.destroy_process_group()
    os._exit(0)  # an assertion that failed has left by an exception; see _alive
