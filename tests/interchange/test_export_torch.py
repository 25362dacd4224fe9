"""Exports that torch itself loads: torch.load(weights_only=True) and torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torchao.optim.subclass_8bit import OptimState8bit

from tests.interchange.cli import ckptd
from tests.interchange.saved import JOB, random_tensor, same, save
from tests.interchange.states import state


def export(root: Path, form: str, out: Path, *more: str, code: int = 0) -> str:
    done = ckptd("export", 7, "--job", JOB, "--store", root, "--format", form, "-o", out, *more, code=code)
    return done.stderr if code else done.stdout


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_load_gives_back_what_was_saved(tmp_path: Path, mmap: bool) -> None:
    saved = state()
    save(tmp_path / "store", saved)
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True, mmap=mmap)
    same(saved, loaded)
    model = loaded["model"]
    assert model["tied"].data_ptr() == model["layer.float32"].data_ptr() != model["scalar"].data_ptr()


def test_registered_parts_are_entries(tmp_path: Path) -> None:
    saved = state()
    save(tmp_path / "store", {name: saved[name] for name in ("model", "optimizer")}, parts=True)
    export(tmp_path / "store", "torch", tmp_path / "all.pt")
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    same(saved["model"], loaded["model"])
    same(saved["optimizer"], loaded["optimizer"])
    export(tmp_path / "store", "torch", tmp_path / "model.pt", "--part", "model")
    same(saved["model"], torch.load(tmp_path / "model.pt", weights_only=True))


def test_a_tensor_of_many_spans(tmp_path: Path) -> None:
    saved = {"wide": torch.arange(3 * 4_500_000, dtype=torch.int64).reshape(3, 4_500_000), "t": torch.ones(3)}
    save(tmp_path / "store", saved)
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    same(saved, torch.load(tmp_path / "out.pt", weights_only=True))
    export(tmp_path / "store", "dcp", tmp_path / "out")
    template = {"wide": torch.zeros_like(saved["wide"]), "t": torch.zeros(3)}
    dcp.load(template, checkpoint_id=tmp_path / "out", no_dist=True)
    same(saved, template)


def emptied(tree: Any) -> Any:
    """The same structure with other values."""
    if isinstance(tree, torch.Tensor):
        return torch.empty_like(tree.contiguous()).copy_(torch.zeros(()).to(tree.dtype).expand(tree.shape))
    if isinstance(tree, dict):
        return {key: emptied(part) for key, part in tree.items()}
    if type(tree) is list and any(isinstance(part, torch.Tensor | dict | list) for part in tree):
        return [emptied(part) for part in tree]
    return None


def test_dcp_load_fills_a_template(tmp_path: Path) -> None:
    saved = state()
    del saved["void"], saved["optimizer"]["state"][1]  # empty dicts: no names in a template
    save(tmp_path / "store", saved)
    export(tmp_path / "store", "dcp", tmp_path / "out")
    template = emptied(saved)
    dcp.load(template, storage_reader=dcp.FileSystemReader(tmp_path / "out"), no_dist=True)
    same({**saved, "ordered": dict(saved["ordered"]), "counted": dict(saved["counted"])}, template)


def test_dcp_load_without_a_template(tmp_path: Path) -> None:
    save(
        tmp_path / "store",
        {"model": {"w": torch.arange(6).reshape(2, 3)}, "epoch": 3, "void": {}, "list": [{"a": torch.ones(1)}]},
    )
    export(tmp_path / "store", "dcp", tmp_path / "out")
    loaded = _load_state_dict_from_keys(checkpoint_id=tmp_path / "out")
    same({"model": {"w": torch.arange(6).reshape(2, 3)}, "epoch": 3, "void": {}, "list": [{"a": torch.ones(1)}]}, dict(loaded))


def test_the_names_are_those_of_dcp_save(tmp_path: Path) -> None:
    saved = state()
    del saved["void"], saved["optimizer"]["state"][1]
    dcp.save(dict(saved), checkpoint_id=tmp_path / "theirs", no_dist=True)
    save(tmp_path / "store", saved)
    export(tmp_path / "store", "dcp", tmp_path / "ours")
    ours, theirs = (dcp.FileSystemReader(tmp_path / name).read_metadata() for name in ("ours", "theirs"))
    assert ours.planner_data == theirs.planner_data
    assert ours.state_dict_metadata.keys() == theirs.state_dict_metadata.keys()
    for name, said in theirs.state_dict_metadata.items():
        assert ours.state_dict_metadata[name] == said, name


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_numpy_is_refused_by_its_path(tmp_path: Path, form: str) -> None:
    save(tmp_path / "store", {"w": torch.ones(2), "rng": {"keys": numpy.arange(3)}})
    message = export(tmp_path / "store", form, tmp_path / "out", code=1)
    assert "numpy array" in message
    assert "rng.keys" in message
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_tensors_made_of_others_are_refused_by_their_path(tmp_path: Path, form: str) -> None:
    save(tmp_path / "store", {"model": {"w": torch.ones(2)}, "moments": {"w": OptimState8bit.zeros((16, 256))}})
    message = export(tmp_path / "store", form, tmp_path / "out", code=1)
    assert "torchao.optim.subclass_8bit:OptimState8bit" in message
    assert "moments.w" in message
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    export(tmp_path / "store", form, tmp_path / "out", "--part", "model")


def test_part_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path / "store", {"w": random_tensor("float32", 2)})
    assert "has no part 'model'" in export(tmp_path / "store", "torch", tmp_path / "out.pt", "--part", "model", code=2)
