"""Exports that the safetensors library itself reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interchange.cli import ckptd
from tests.interchange.saved import ALL_DTYPES, JOB, bits, random_tensor, save
from tests.interchange.states import weights

NOT_IN_SAFETENSORS = {"complex32", "complex128"}


def test_a_registered_module_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    saved = weights([name for name in ALL_DTYPES if name not in NOT_IN_SAFETENSORS])
    save(tmp_path / "store", {"model": saved, "optimizer": {"state": {}, "lr": 0.1}}, parts=True)
    ckptd("export", 7, "--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(loaded[name]) == bits(tensor), name


def test_shards_have_an_index(tmp_path: Path) -> None:
    saved = {f"w{n}": random_tensor("float32", 100, 100, seed=n) for n in range(7)}
    save(tmp_path / "store", {"model": saved, "step": 3})
    words = ("--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    ckptd("export", 7, *words, "--shard-bytes", 100_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280_000
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)]
    for name, file in index["weight_map"].items():
        assert bits(load_file(tmp_path / "out" / file)[name]) == bits(saved[name])


def test_a_tensor_of_many_spans_and_frames(tmp_path: Path) -> None:
    big = torch.arange(11_000_001, dtype=torch.int64)  # over two spans
    save(tmp_path / "store", {"big": big, "small": torch.ones(3)})
    ckptd("export", 7, "--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["big"], big)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.ones(2), "epoch": 3}, "nothing but tensors"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "no complex128"),
        ({"a.b": torch.ones(2), "c": {"d": torch.ones(1)}, "c.d": 3}, "nothing but tensors"),
    ],
)
def test_what_it_cannot_hold_is_refused(tmp_path: Path, state: dict[str, object], message: str) -> None:
    save(tmp_path / "store", state)
    words = ("--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    assert message in ckptd("export", 7, *words, code=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_nothing_is_replaced_and_the_pin_ends(tmp_path: Path) -> None:
    save(tmp_path / "store", {"w": torch.ones(2)})
    words = ("--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    ckptd("export", 7, *words)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert "something is there already" in ckptd("export", 7, *words, code=2).stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    listed = json.loads(ckptd("ls", "--job", JOB, "--store", tmp_path / "store", "--json").stdout)
    assert [one["pins"] for one in listed["checkpoints"]] == [[]]


def test_damage_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path / "store", {"w": random_tensor("float32", 1000, 1000)})
    (segment, *_) = (tmp_path / "store").rglob("*.seg")
    body = bytearray(segment.read_bytes())
    body[len(body) // 2] ^= 1
    segment.write_bytes(body)
    words = ("--job", JOB, "--store", tmp_path / "store", "--format", "safetensors", "-o", tmp_path / "out")
    assert "don't match their hash" in ckptd("export", 7, *words, code=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
