"""Flows of one process (no_dist). Each gives the same on both backends; what it returns is compared."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, _load_state_dict_from_keys

from tests.dcp.backends import Backend

warnings.filterwarnings("ignore", category=UserWarning)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


def _bytes_as(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)


def every_dtype(store: Backend) -> Any:
    state = {str(dtype): _bytes_as(dtype, 12, at).view(3, 4) for at, dtype in enumerate(DTYPES)}
    dcp.save(state, storage_writer=store.writer("dtypes"), no_dist=True)
    into = {key: torch.zeros_like(value) for key, value in state.items()}
    dcp.load(into, storage_reader=store.reader("dtypes"), no_dist=True)
    return into


def odd_tensors(store: Backend) -> Any:
    big = torch.arange(10_000.0)
    state = {
        "zero_dim": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "channels_last": torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "sliver": big[5000:5003],
        "conj": torch.complex(torch.arange(4.0), torch.ones(4)).conj(),
        "neg": torch.complex(torch.arange(4.0), torch.ones(4)).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "expanded": torch.tensor([3.0]).expand(4),
    }
    dcp.save(state, storage_writer=store.writer("odd"), no_dist=True)
    into = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    into["transposed"] = torch.zeros(3, 4).t()
    dcp.load(into, storage_reader=store.reader("odd"), no_dist=True)
    return into


def nested_and_values(store: Backend) -> Any:
    state = {
        "a": {"b": [torch.ones(2), {"c": torch.zeros(1)}], "lr": 0.5, "name": "x", "none": None},
        "steps": [1, 2, 3],
        "big_int": 1 << 80,
        "blob": b"\0\1" * 5000,
        "tuple": (1, "two"),
    }
    dcp.save(state, storage_writer=store.writer("nested"), no_dist=True)
    into = {
        "a": {"b": [torch.zeros(2), {"c": torch.ones(1)}], "lr": 0.0, "name": "", "none": 1},
        "steps": [0, 0, 0],
        "big_int": 0,
        "blob": b"",
        "tuple": (0, ""),
    }
    dcp.load(into, storage_reader=store.reader("nested"), no_dist=True)
    return into


def without_flattening(store: Backend) -> Any:
    state = {"x": torch.arange(5.0), "deep": {"y": torch.ones(2), "z": 3}}
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, storage_writer=store.writer("flat"), planner=planner, no_dist=True)
    into = {"x": torch.zeros(5), "deep": {"y": torch.zeros(2), "z": 0}}
    load = DefaultLoadPlanner(flatten_state_dict=False)
    dcp.load(into, storage_reader=store.reader("flat"), planner=load, no_dist=True)
    return into


def partial_and_strict(store: Backend) -> Any:
    state = {"a": torch.ones(3), "b": torch.full((2,), 2.0), "n": 4}
    dcp.save(state, storage_writer=store.writer("partial"), no_dist=True)
    some = {"b": torch.zeros(2)}
    dcp.load(some, storage_reader=store.reader("partial"), no_dist=True)
    more = {"a": torch.zeros(3), "new": torch.full((1,), 9.0)}
    kept = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(more, storage_reader=store.reader("partial"), planner=kept, no_dist=True)
    refused = [
        _error(lambda: dcp.load({"new": torch.zeros(1)}, storage_reader=store.reader("partial"), no_dist=True)),
        _error(lambda: dcp.load({"a": torch.zeros(4)}, storage_reader=store.reader("partial"), no_dist=True)),
        _error(lambda: dcp.load({"a": torch.zeros(3)}, storage_reader=store.reader("never saved"), no_dist=True)),
    ]
    return [some, more, refused]


def _error(call: Any) -> str:
    """The kind of error that DCP's caller sees."""
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "none"


def other_dtype(store: Backend) -> Any:
    dcp.save({"w": torch.arange(9.0)}, storage_writer=store.writer("cast"), no_dist=True)
    into = {"w": torch.zeros(9, dtype=torch.bfloat16)}
    dcp.load(into, storage_reader=store.reader("cast"), no_dist=True)
    return into


def without_template(store: Backend) -> Any:
    state = {"model": {"w": torch.arange(6.0), "b": torch.ones(1)}, "lr": 0.1, "list": [torch.zeros(2), 5]}
    dcp.save(state, storage_writer=store.writer("template"), no_dist=True)
    whole: dict[str, Any] = {}
    reader = store.reader("template")
    _load_state_dict(whole, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    model = _load_state_dict_from_keys("model", storage_reader=store.reader("template"))
    one = _load_state_dict_from_keys({"model.w", "lr"}, storage_reader=store.reader("template"))
    return [whole, model, one]


class Counter:
    """A Stateful."""

    def __init__(self, count: int) -> None:
        self.count, self.noise = count, torch.full((4,), float(count))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.noise = state["count"], state["noise"]


def stateful(store: Backend) -> Any:
    dcp.save({"app": Counter(5)}, storage_writer=store.writer("stateful"), no_dist=True)
    into = Counter(0)
    dcp.load({"app": into}, storage_reader=store.reader("stateful"), no_dist=True)
    return [into.count, into.noise]


def optimizers(store: Backend) -> Any:
    found = []
    kinds: list[Any] = [
        lambda p: torch.optim.AdamW(p, lr=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adafactor(p),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), amsgrad=True),
    ]
    for at, kind in enumerate(kinds):
        torch.manual_seed(at)
        models = [_trained(kind, steps) for steps in (3, 1)]
        (model, optimizer), (other, fresh) = models
        msd, osd = get_state_dict(model, optimizer)
        dcp.save({"model": msd, "optim": osd}, storage_writer=store.writer(f"optim{at}"), no_dist=True)
        msd2, osd2 = get_state_dict(other, fresh)
        into = {"model": msd2, "optim": osd2}
        dcp.load(into, storage_reader=store.reader(f"optim{at}"), no_dist=True)
        set_state_dict(other, fresh, model_state_dict=into["model"], optim_state_dict=into["optim"])
        found.append([other.state_dict(), fresh.state_dict()["state"]])
    return found


def _trained(kind: Any, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    optimizer = kind(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    return model, optimizer


def by_checkpoint_id(store: Backend) -> Any:
    """One writer and one reader, told each time which checkpoint."""
    writer, reader = store.writer("id0"), store.reader("id0")
    for at in range(3):
        dcp.save({"w": torch.full((3,), float(at))}, checkpoint_id=store.id(f"id{at}"), storage_writer=writer, no_dist=True)
    found = []
    for at in (2, 0, 1):
        into = {"w": torch.zeros(3)}
        dcp.load(into, checkpoint_id=store.id(f"id{at}"), storage_reader=reader, no_dist=True)
        found.append(into)
    return found


def saved_again(store: Backend) -> Any:
    for value in (1.0, 2.0):
        dcp.save({"w": torch.full((3,), value)}, storage_writer=store.writer("again"), no_dist=True)
    into = {"w": torch.zeros(3)}
    dcp.load(into, storage_reader=store.reader("again"), no_dist=True)
    return into


def changing_between_async_saves(store: Backend) -> Any:
    """What is saved is what was there when async_save returned."""
    state = {"w": torch.zeros(100_000), "n": {"steps": [0]}}
    for at in range(4):
        state["w"].fill_(at)
        state["n"]["steps"][0] = at
        future = dcp.async_save(state, storage_writer=store.writer(f"async{at}"), no_dist=True)
        state["w"].fill_(-1)
        state["n"]["steps"][0] = -1
        future.result()
    found = []
    for at in range(4):
        into = {"w": torch.ones(100_000), "n": {"steps": [7]}}
        dcp.load(into, storage_reader=store.reader(f"async{at}"), no_dist=True)
        found.append(into)
    return found


def metadata(store: Backend) -> Any:
    state = {"m": {"w": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}, "lr": 0.1}
    dcp.save(state, storage_writer=store.writer("meta"), no_dist=True)
    found = store.reader("meta").read_metadata()
    tensors = {
        fqn: "bytes"
        if isinstance(entry, BytesStorageMetadata)
        else [str(entry.properties.dtype), tuple(entry.size), [(tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks]]
        for fqn, entry in found.state_dict_metadata.items()
    }
    return [tensors, dict(found.planner_data)]


class Unpicklable:
    """torch.save fails on it."""

    def __reduce__(self) -> Any:
        raise ValueError("this can't be saved")


def failing_value(store: Backend) -> Any:
    error = _error(
        lambda: dcp.save({"w": torch.ones(2), "bad": Unpicklable()}, storage_writer=store.writer("bad"), no_dist=True)
    )
    dcp.save({"w": torch.ones(2)}, storage_writer=store.writer("after bad"), no_dist=True)
    into = {"w": torch.zeros(2)}
    dcp.load(into, storage_reader=store.reader("after bad"), no_dist=True)
    return [error, _error(lambda: dcp.load({"w": torch.zeros(2)}, storage_reader=store.reader("bad"), no_dist=True)), into]


FLOWS = [
    every_dtype, odd_tensors, nested_and_values, without_flattening, partial_and_strict, other_dtype, without_template,
    stateful, optimizers, by_checkpoint_id, saved_again, changing_between_async_saves, metadata, failing_value,
]  # fmt: skip
