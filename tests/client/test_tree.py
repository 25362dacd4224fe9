"""Following a known structure gives what a walk gives, whatever became of the state meanwhile."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.errors import UnsupportedStateError
from ckptd_client.tree import Collected, Collector, Part
from ckptd_client.typed import TensorRef, decode

_SHARED = [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)]
_KEYS = st.one_of(st.sampled_from(["a", "b", "_", ""]), st.integers(0, 2), st.booleans())
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, -0.0, 1.0]), st.sampled_from(["", "x"]))
_TENSORS = st.one_of(
    st.sampled_from(_SHARED),  # drawn twice they are tied
    st.builds(torch.zeros, st.integers(0, 2)),
    st.builds(lambda: torch.zeros(3, dtype=torch.bfloat16)),
)
_TREES: Any = st.recursive(
    st.one_of(_LEAVES, _TENSORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_KEYS, inner, max_size=3),
        st.dictionaries(_KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


def seen(found: Collected) -> tuple[object, ...]:
    """All that a snapshot is made of; tensors by identity."""
    names = {fqn: id(found.tensors[index]) for fqn, index in found.structure.names.items()}
    return (found.structure.objects, names, found.structure.whole, found.bodies)


def collected(collector: Collector, tree: object) -> tuple[object, ...] | str:
    try:
        return seen(collector.collect([Part("part", tree), Part("ckptd.other", {"step": 1}, scope="rank")]))
    except UnsupportedStateError as error:
        return str(error)


@given(st.lists(_TREES, min_size=1, max_size=4))
def test_one_that_remembers_finds_what_a_new_one_finds(trees: list[object]) -> None:
    collector = Collector(0)
    for tree in trees:
        fresh = collected(Collector(0), tree)
        assert collected(collector, tree) == fresh
        assert collected(collector, tree) == fresh  # followed, if it could be


@given(_TREES)
def test_the_tree_comes_back_with_references_for_tensors(tree: object) -> None:
    try:
        found = Collector(0).collect([Part("part", tree)])
    except UnsupportedStateError:
        return  # two dotted names that are the same
    tensors = iter(found.tensors)

    def same(value: Any, stored: Any) -> bool:
        if isinstance(value, torch.Tensor):
            held = found.tensors[found.structure.names[stored.fqn]]
            return (
                type(stored) is TensorRef and next(tensors) is value and (held is value or held.data_ptr() == value.data_ptr())
            )
        if type(value) is not type(stored):
            return False
        if isinstance(value, dict):
            return [(type(k), k) for k in value] == [(type(k), k) for k in stored] and all(
                map(same, value.values(), stored.values())
            )
        if isinstance(value, (list, tuple)):
            return len(value) == len(stored) and all(map(same, value, stored))
        return repr(value) == repr(stored)

    assert same(tree, decode(found.bodies["part"]))


def test_a_known_structure_is_followed_and_a_new_one_is_walked() -> None:
    weight, state = torch.zeros(4), {"step": 1, "lr": [0.1]}
    collector = Collector(0)

    def collect(tree: object) -> Collected:
        return collector.collect([Part("p", tree)])

    first = collect({"w": weight, "s": state})
    again = collect({"w": torch.ones(4), "s": {"step": 2, "lr": [0.1, 0.2]}})
    assert again.structure is first.structure
    assert decode(again.bodies["p"])["s"] == {"step": 2, "lr": [0.1, 0.2]}
    assert again.tensors[0] is not weight
    for other in (
        {"w": torch.zeros(5), "s": state},
        {"w": torch.zeros(4, dtype=torch.int32), "s": state},
        {"w": torch.zeros(4, device="meta"), "s": state},
        {"w": torch.zeros(4).to_sparse(), "s": state},
        {"w": weight, "s": {**state, "late": torch.zeros(1)}},
        {"w": None, "s": state},
        {"s": state, "w": torch.zeros(2)},
    ):
        assert collect({"w": weight, "s": state}).structure is not collect(other).structure


def test_tied_weights_that_part_are_stored_both() -> None:
    one, collector = torch.zeros(4), Collector(0)
    tied = collector.collect([Part("p", {"a": one, "b": one.detach()})])
    assert list(tied.structure.names) == ["p.a"]
    parted = collector.collect([Part("p", {"a": one, "b": one.clone()})])
    assert list(parted.structure.names) == ["p.a", "p.b"]


def test_who_stores_nothing_of_an_object_checks_it_once() -> None:
    collector = Collector(1)
    with pytest.raises(UnsupportedStateError, match=r"'p\.x'"):
        collector.collect([Part("p", {"x": object()})])
    found = collector.collect([Part("p", {"x": 1}), Part("r", 2, scope="rank")])
    assert list(found.bodies) == ["r"]
