from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import msgpack
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.errors import ProtocolError, UnsupportedStateError
from ckptd_client.typed import TensorRef, decode, encode

scalars = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
keys = st.one_of(scalars, st.tuples(st.integers(), st.text()))
leaves = st.one_of(keys, st.floats(), st.binary(), st.integers(-(1 << 200), 1 << 200), st.builds(TensorRef, st.text()))


def branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    plain = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), plain, plain.map(OrderedDict),
        st.dictionaries(keys, st.integers(), max_size=4).map(Counter),
    )  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, of equal types all the way down, NaN equal to itself, order of dicts kept."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return (a == b and (not isinstance(a, float) or str(a) == str(b))) or (a != a and b != b)


@given(st.recursive(leaves, branches, max_leaves=30))
def test_a_tree_comes_back_with_its_types(tree: Any) -> None:
    assert same(decode(encode(tree)), tree)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    try:
        decode(body)
    except ProtocolError:
        pass


garbage = st.recursive(
    st.one_of(
        st.none(), st.integers(-9, 9), st.sampled_from([*"ltdocanryi", "<f4", "|O", "float32", ""]), st.binary(max_size=8)
    ),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=15,
)


@given(garbage)
def test_any_msgpack_parses_or_is_refused(tree: Any) -> None:
    try:
        decode(msgpack.packb(tree))
    except ProtocolError:
        pass


def test_numpy_and_torch_values() -> None:
    arrays = [
        numpy.arange(6, dtype=">i2").reshape(2, 3).T, numpy.float16(1.5), numpy.array(True), numpy.zeros((0, 3)),
        numpy.array(["ab", "c"]), numpy.datetime64("2024-01-01"), numpy.array(3 + 4j),
    ]  # fmt: skip
    for array, back in zip(arrays, decode(encode(arrays)), strict=True):
        assert type(back) is type(array) and back.dtype == array.dtype and back.shape == array.shape and (back == array).all()
    assert decode(encode([torch.bfloat16, torch.Size([2, 3])])) == [torch.bfloat16, (2, 3)]
    decode(encode(numpy.zeros(3)))[0] = 1  # writable, like what was stored


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": {"b": [0, {1, 2}]}}, "p.a.b.1"),
        ({"a": lambda: 0}, "p.a"),
        ([defaultdict(int)], "p.0"),
        ({frozenset(): 1}, "p.frozenset()"),
        ({"x": numpy.array([None])}, "p.x"),
        ({"x": numpy.zeros(2, dtype=[("a", "i4")])}, "p.x"),
        ({"x": bytearray(b"1")}, "p.x"),
    ],
)
def test_the_rest_is_refused_by_path(tree: Any, path: str) -> None:
    with pytest.raises(UnsupportedStateError) as caught:
        encode(tree, "p")
    assert caught.value.path == path


def test_nesting_is_bounded_both_ways() -> None:
    deep: Any = 1
    raw: Any = 1
    for _ in range(200):
        deep, raw = [deep], ["l", raw]
    with pytest.raises(UnsupportedStateError):
        encode(deep)
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(raw))
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(["a", "<f8", [1 << 40], b""]))
    for name in ("load", "_dynamo", "qint8", "ops"):
        with pytest.raises(ProtocolError):
            decode(msgpack.packb(["y", name]))
