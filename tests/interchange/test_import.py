"""What torch and safetensors have written, as checkpoints of a job: bit by bit, and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from tests.interchange.cli import ckptd
from tests.interchange.saved import ALL_DTYPES, JOB, load, random_tensor, same
from tests.interchange.states import state, weights

NOT_IN_SAFETENSORS = {"complex32", "complex128"}


def import_(root: Path, source: Path, *more: object, code: int = 0) -> str:
    done = ckptd("import", source, "--job", JOB, "--store", root / "store", *more, code=code)
    return done.stderr if code else done.stdout


def export(root: Path, form: str, out: Path, *more: object) -> None:
    ckptd("export", *more, "--job", JOB, "--store", root / "store", "--format", form, "-o", out)


def test_a_torch_file(tmp_path: Path) -> None:
    saved = state()
    torch.save(saved, tmp_path / "in.pt")
    said = import_(tmp_path, tmp_path / "in.pt", "--step", 40)
    assert "as step 40" in said
    loaded, info = load(tmp_path / "store")
    assert info.step == 40
    same(saved, loaded)
    ckptd("verify", "--job", JOB, "--store", tmp_path / "store", "--read-data")
    export(tmp_path, "torch", tmp_path / "out.pt", 40)
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    same(saved, again)
    assert again["model"]["tied"].data_ptr() == again["model"]["layer.float32"].data_ptr()


def test_a_module_is_filled_in_place(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    torch.save({"model": model.state_dict(), "step": 9}, tmp_path / "in.pt")  # an OrderedDict with attributes
    import_(tmp_path, tmp_path / "in.pt")
    other = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    into: dict[str, Any] = {"model": dict(other.state_dict()), "step": 0}
    load(tmp_path / "store", into)
    same(dict(model.state_dict()), dict(other.state_dict()))
    assert into["step"] == 9


def test_views_parameters_and_strides(tmp_path: Path) -> None:
    storage = random_tensor("bfloat16", 4000, seed=3)
    saved = {
        "turned": storage.view(50, 80).t(),
        "view": storage[17:300],
        "steps": storage[5:2000:7],
        "block": storage.view(10, 20, 20)[3:8, 2:9, 1:20:3],
        "last": random_tensor("float32", 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "nothing": storage[7:7],
    }
    torch.save(saved, tmp_path / "in.pt")
    import_(tmp_path, tmp_path / "in.pt")
    loaded, _ = load(tmp_path / "store")
    same({**saved, "parameter": saved["parameter"].data}, loaded)


def test_safetensors(tmp_path: Path) -> None:
    saved = {
        name: t.contiguous().clone() for name, t in weights([d for d in ALL_DTYPES if d not in NOT_IN_SAFETENSORS]).items()
    }
    save_file(saved, tmp_path / "in.safetensors", metadata={"format": "pt"})
    import_(tmp_path, tmp_path / "in.safetensors")
    loaded, info = load(tmp_path / "store")
    assert info.step == 0
    assert loaded.keys() == saved.keys()
    for name in saved:
        same(saved[name], loaded[name], name)
    export(tmp_path, "safetensors", tmp_path / "out", 0)
    again = load_file(tmp_path / "out" / "model.safetensors")
    same(dict(sorted(saved.items())), dict(sorted(again.items())))


def test_sharded_safetensors(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shards = [{f"w{a}{b}": random_tensor("float16", 7, 9, seed=10 * a + b) for b in range(3)} for a in range(3)]
    files = [f"model-{number:05d}-of-00003.safetensors" for number in range(1, 4)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, tmp_path / "in" / file)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    import_(tmp_path, tmp_path / "in")
    loaded, _ = load(tmp_path / "store")
    same({name: tensor for shard in shards for name, tensor in shard.items()}, loaded)


def test_a_dcp_directory(tmp_path: Path) -> None:
    saved = state()
    del saved["void"], saved["optimizer"]["state"][1]  # dcp.save loses empty dicts
    dcp.save(dict(saved), storage_writer=dcp.FileSystemWriter(tmp_path / "in", thread_count=3), no_dist=True)
    import_(tmp_path, tmp_path / "in", "--step", 5)
    loaded, info = load(tmp_path / "store")
    assert info.step == 5
    assert loaded.keys() == saved.keys()
    saved["optimizer"]["state"] = {"0": saved["optimizer"]["state"][0]}  # and makes texts of keys
    saved["ordered"], saved["counted"] = dict(saved["ordered"]), dict(saved["counted"])  # and dicts of all kinds of dicts
    for key, value in saved.items():
        same(value, {**value, **loaded[key]} if isinstance(value, dict) else loaded[key], key)
    export(tmp_path, "dcp", tmp_path / "out", 5)
    template = {"model": {name: torch.zeros_like(t) for name, t in saved["model"].items() if t.dtype != torch.complex32}}
    dcp.load(template, checkpoint_id=tmp_path / "out", no_dist=True)
    same({name: saved["model"][name] for name in template["model"]}, template["model"])


def test_a_dcp_directory_of_an_early_python_3_11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = lambda member, _protocol: (getattr, (type(member), member.name))  # noqa: E731
    monkeypatch.setattr("torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING.__reduce_ex__", by_name)
    dcp.save({"w": torch.arange(3)}, checkpoint_id=tmp_path / "in", no_dist=True)
    assert b"getattr" in (tmp_path / "in" / ".metadata").read_bytes()
    import_(tmp_path, tmp_path / "in")
    same({"w": torch.arange(3)}, load(tmp_path / "store")[0])


def test_our_own_dcp_export(tmp_path: Path) -> None:
    saved = state()
    torch.save(saved, tmp_path / "in.pt")
    import_(tmp_path, tmp_path / "in.pt")
    export(tmp_path, "dcp", tmp_path / "dcp", 0)
    ckptd("import", tmp_path / "dcp", "--job", JOB, "--store", tmp_path / "second" / "store")
    loaded, _ = load(tmp_path / "second" / "store")
    export(tmp_path / "second", "torch", tmp_path / "out.pt", 0)
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert again["model"]["tied"].data_ptr() == again["model"]["layer.float32"].data_ptr()
    assert loaded["void"] == {} and loaded["optimizer"]["state"]["1"] == {}
    same(saved["model"], again["model"])


@pytest.mark.parametrize("shape", [(9_000_001,), (3, 3_000_003), (2, 2, 2_300_000), (3001, 3002)])
def test_tensors_of_many_batches(tmp_path: Path, shape: tuple[int, ...]) -> None:
    saved = {"big": torch.arange(torch.Size(shape).numel(), dtype=torch.int64).reshape(shape), "small": torch.ones(2)}
    saved["turned"] = saved["big"].transpose(0, -1)
    saved["steps"] = saved["big"].reshape(-1)[3::5]
    torch.save(saved, tmp_path / "in.pt")
    import_(tmp_path, tmp_path / "in.pt")
    loaded, _ = load(tmp_path / "store")
    same(saved, loaded)


def test_a_job_that_has_checkpoints(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "b.pt")
    import_(tmp_path, tmp_path / "a.pt", "--step", 100)
    import_(tmp_path, tmp_path / "b.pt", "--step", 7)
    loaded, info = load(tmp_path / "store")
    assert info.step == 7
    assert torch.equal(loaded["w"], torch.ones(3))
    listed = json.loads(ckptd("ls", "--job", JOB, "--store", tmp_path / "store", "--json").stdout)["checkpoints"]
    assert [(one["step"], one["newest"]) for one in listed] == [(100, False), (7, True)]
    assert listed[1]["parent"] == listed[0]["record"]
