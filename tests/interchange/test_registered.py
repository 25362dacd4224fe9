"""Exports of registered trainings: a pipeline is one model again, optimizers are what torch's own calls give and take."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ckptd.errors import InterchangeError
from ckptd.interchange.registered import by_name, by_number, pieces_by_part, united
from ckptd.interchange.tree import TensorRef
from ckptd_client import over, per_rank
from ckptd_client.placement import Holders, Mesh
from ckptd_client.scopes import Scoped
from tests.interchange.saved import same, save, save_registered
from tests.interchange.test_export_torch import export

WIDTHS = (6, 9, 7, 5, 3)


def network(first: int = 0, last: int = 4) -> torch.nn.Sequential:
    """Layers of a model, under the names that they have in the whole; their weights depend on the layer alone."""
    layers = OrderedDict[str, torch.nn.Module]()
    for number in range(first, last):
        torch.manual_seed(number)
        layers[f"layer{number}"] = torch.nn.Linear(WIDTHS[number], WIDTHS[number + 1])
    return torch.nn.Sequential(layers)


def adam(*models: torch.nn.Module) -> torch.optim.AdamW:
    """Biases in front, without decay: parameters are in another order than in the model."""
    named = [one for model in models for one in model.named_parameters()]
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    weights = [parameter for name, parameter in named if name.endswith("weight")]
    return torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": weights, "lr": 0.01}])


def train(optimizers: list[torch.optim.AdamW], *stages: torch.nn.Module, first: int = 0, steps: int = 3) -> None:
    for number in range(first, first + steps):
        out = torch.randn(8, WIDTHS[0], generator=torch.Generator().manual_seed(number))
        for stage in stages:
            out = stage(out)
        for optimizer in optimizers:
            optimizer.zero_grad()
        out.square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def trained() -> tuple[torch.nn.Sequential, torch.optim.AdamW]:
    model = network()
    optimizer = adam(model)
    train([optimizer], model)
    return model, optimizer


def pipeline(holders: tuple[list[int], list[int]]) -> list[dict[str, Any]]:
    """What the ranks of two trained stages register."""
    stages = network(0, 2), network(2, 4)
    optimizers = [adam(stage) for stage in stages]
    train(optimizers, *stages)
    world: dict[int, dict[str, Any]] = {}
    for stage, optimizer, ranks in zip(stages, optimizers, holders, strict=True):
        world |= {rank: {"model": over(stage, ranks), "optimizer": over(optimizer, ranks)} for rank in ranks}
    return [world[rank] for rank in range(len(world))]


def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_registered(tmp_path / "store", [{"model": model, "optimizer": optimizer}])
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    same({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}, loaded)
    export(tmp_path / "store", "torch", tmp_path / "optimizer.pt", "--part", "optimizer")
    same(loaded["optimizer"], torch.load(tmp_path / "optimizer.pt", weights_only=True))
    other = network()
    again = adam(other)
    other.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train([again], other, first=3)
    train([optimizer], model, first=3)
    same(dict(model.state_dict()), dict(other.state_dict()))
    same(optimizer.state_dict(), again.state_dict())


@pytest.mark.parametrize("holders", [([0], [1]), ([0, 1], [2, 3]), ([1, 3], [0, 2])])
def test_stages_are_one_model(tmp_path: Path, holders: tuple[list[int], list[int]]) -> None:
    save_registered(tmp_path / "store", pipeline(holders))
    model, optimizer = trained()
    export(tmp_path / "store", "safetensors", tmp_path / "weights")
    whole = model.state_dict()
    weights = load_file(tmp_path / "weights" / "model.safetensors")
    same(dict(whole), {name: weights[name] for name in whole})
    assert weights.keys() == whole.keys()
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(loaded) == ["model", "optimizer"]
    model.load_state_dict(loaded["model"])
    if holders[0] < holders[1]:  # stages in the order of their ranks: the order of the whole model's optimizer
        same(optimizer.state_dict()["param_groups"], loaded["optimizer"]["param_groups"])
        same(optimizer.state_dict()["state"], dict(sorted(loaded["optimizer"]["state"].items())))


@pytest.mark.parametrize("stages", [False, True])
def test_dcp_loads_what_get_state_dict_asks_for(tmp_path: Path, stages: bool) -> None:
    model, optimizer = trained()
    parts = pipeline(([0], [1])) if stages else [{"model": model, "optimizer": optimizer}]
    save_registered(tmp_path / "store", parts)
    export(tmp_path / "store", "dcp", tmp_path / "out")
    other = network()
    again = adam(*reversed([*other.children()]))  # names find their parameters in any order
    model_state, optimizer_state = get_state_dict(other, again)
    template = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(template, checkpoint_id=tmp_path / "out", no_dist=True)
    set_state_dict(other, again, model_state_dict=template["model"], optim_state_dict=template["optimizer"])
    same(dict(model.state_dict()), dict(other.state_dict()))
    train([optimizer], model, first=3)
    train([again], other, first=3)
    same(dict(model.state_dict()), dict(other.state_dict()))


def test_the_dcp_names_are_those_of_dcp_save(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_registered(tmp_path / "store", [{"model": model, "optimizer": optimizer}])
    export(tmp_path / "store", "dcp", tmp_path / "ours")
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    ours, theirs = (dcp.FileSystemReader(tmp_path / name).read_metadata() for name in ("ours", "theirs"))
    assert ours.planner_data == theirs.planner_data
    assert ours.state_dict_metadata == theirs.state_dict_metadata


def test_what_is_per_index_keeps_its_label_and_what_is_per_rank_stays_behind(tmp_path: Path) -> None:
    mesh = Mesh((2,), (0, 1))
    ranks = []
    for rank in range(2):
        model = network(rank, rank + 1)
        optimizer = adam(model)
        scoped = {"model": model, "optimizer": optimizer}
        index = {name: Scoped(one, "index", Holders((0, 1), mesh), 0) for name, one in scoped.items()}
        ranks.append({**index, "own": per_rank(network())})
    save_registered(tmp_path / "store", ranks)
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert sorted(loaded) == ["model[0 of 2]", "model[1 of 2]", "optimizer[0 of 2]", "optimizer[1 of 2]"]
    same(dict(network(1, 2).state_dict()), loaded["model[1 of 2]"])
    same(adam(network(1, 2)).state_dict(), loaded["optimizer[1 of 2]"])
    message = export(tmp_path / "store", "torch", tmp_path / "no.pt", "--part", "model", code=2)
    assert "model[0 of 2]" in message


def test_pieces_that_disagree_spare_the_other_parts(tmp_path: Path) -> None:
    ranks = pipeline(([0], [1]))
    ranks[1]["optimizer"].thing.param_groups[0]["lr"] = 0.5
    save_registered(tmp_path / "store", ranks)
    message = export(tmp_path / "store", "torch", tmp_path / "out.pt", code=1)
    assert "optimizer.param_groups.0.lr" in message
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    export(tmp_path / "store", "torch", tmp_path / "model.pt", "--part", "model")
    network().load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


OPTIMIZER = {
    "state": {"model.a": {"step": 1}, "model.b": {"step": 2}},
    "param_groups": [{"lr": 1, "params": "model.b"}, {"lr": 2, "params": ""}, {"lr": 3, "params": "model.c\nmodel.a"}],
    "more": 5,
}


def test_a_saved_dict_that_looks_like_an_optimizer_by_names_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "store", {"optimizer": OPTIMIZER, "model": {"a": torch.ones(1)}})
    export(tmp_path / "store", "torch", tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt", weights_only=True)["optimizer"] == OPTIMIZER


def test_by_number_and_by_name() -> None:
    numbered = by_number(OPTIMIZER)
    assert numbered["state"] == {2: {"step": 1}, 0: {"step": 2}} and numbered["more"] == 5
    assert [group["params"] for group in numbered["param_groups"]] == [[0], [], [1, 2]]
    assert by_number(numbered) is numbered and by_name(numbered, ["model"]) is numbered
    for parts, prefix in ((["mod", "model", "optimizer"], ""), (["model.a"], "model."), (["model[1 of 2]"], "")):
        named = by_name(OPTIMIZER, parts)
        assert named["state"] == {f"{prefix}a": {"step": 1}, f"{prefix}b": {"step": 2}}
        assert [group["params"] for group in named["param_groups"]] == [[f"{prefix}b"], [], [f"{prefix}c", f"{prefix}a"]]
    for other in (5, {"state": {}}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": [{"params": "a"}, {}]}):
        assert by_number(other) is other
    with pytest.raises(InterchangeError, match=r"two groups.*name='a'"):
        by_number({"state": {}, "param_groups": [{"params": "b\na"}, {"params": "a"}]})


def test_pieces_of_a_part_become_one() -> None:
    assert pieces_by_part({"m[10]": b"3", "m[2]": b"2", "o": b"1", "l[1 of 2]": b"0"}) == {
        "m": [b"2", b"3"],
        "o": [b"1"],
        "l[1 of 2]": [b"0"],
    }
    assert pieces_by_part({"m[1]": b"1", "m": b"0"}) == {"m[1]": [b"1"], "m": [b"0"]}
    one = {"state": {"a": {"step": 1}}, "groups": [{"lr": float("nan"), "params": "a\nb"}], "x": (TensorRef("t"), [2.5])}
    other = {"state": {"c": {}}, "groups": [{"lr": float("nan"), "params": "c"}], "x": (TensorRef("t"), [2.5])}
    whole = united("o", [one, other, one])
    assert list(whole["state"]) == ["a", "c"] and whole["groups"][0]["params"] == "a\nb\nc" and whole["x"] == one["x"]
    for bad in ({**other, "x": (TensorRef("u"), [2.5])}, {**other, "groups": []}, {**other, "x": (TensorRef("t"), [2])}):
        with pytest.raises(InterchangeError, match=r"o\.(x|groups)"):
            united("o", [one, bad])
