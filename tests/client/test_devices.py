"""What of the copies from devices needs no device. test_cuda.py has the rest."""

from __future__ import annotations

import gc
import itertools
import logging
import mmap
import os
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.arena import ID_BYTES, Arena, Shape, make_arena
from ckptd_client.devices import Pinned, moves, send
from ckptd_client.errors import ResourceError
from ckptd_client.place import find_place
from ckptd_client.staging import Stager

# (bytes, home, whether something of somebody else's lies behind it)
_PIECES = st.lists(st.tuples(st.integers(1, 400), st.sampled_from("ab"), st.booleans()), max_size=40)


def laid_out(pieces: list[tuple[int, str, bool]]) -> tuple[list[moves.Span], list[str], set[int]]:
    """Spans as `capture.Plan` places them; the homes; the bytes that belong to others."""
    spans, homes, others, at = [], [], set[int](), 0
    for count, home, followed in pieces:
        spans.append((at, count))
        homes.append(home)
        at += -(-count // 64) * 64
        if followed:
            others.add(at)
            at += 64
    return spans, homes, others


@given(_PIECES, st.integers(1, 500), st.integers(1, 2000))
def test_runs(pieces: list[tuple[int, str, bool]], small: int, gather: int) -> None:
    spans, homes, others = laid_out(pieces)
    found = list(moves.runs(spans, homes, small, gather))
    assert [at for run in found for at in run] == list(range(len(spans)))
    for run in found:
        start, end = spans[run[0]][0], sum(spans[run[-1]])
        assert len({homes[at] for at in run}) == 1
        assert not any(start <= byte < end for byte in others)
        if len(run) > 1:
            assert end - start <= gather and all(spans[at][1] < small for at in run)
    for one, two in itertools.pairwise(found):  # nothing is cut that could have stayed together
        last, first = one[-1], two[0]
        together = sum(spans[two[0]]) - spans[one[0]][0]
        assert (
            homes[last] != homes[first]
            or max(spans[last][1], spans[first][1]) >= small
            or spans[first][0] - sum(spans[last]) >= 64
            or together > gather
        )


def strange_tensors() -> list[torch.Tensor]:
    torch.manual_seed(1)
    whole = torch.randn(8, 6, 5)
    return [
        torch.randn(3),
        torch.tensor(2.5),
        torch.randn(7).bfloat16(),
        torch.randn(9).to(torch.float8_e4m3fn),
        torch.randn(4, 3, dtype=torch.complex64),
        torch.randn(4, 3, dtype=torch.complex64).conj(),
        torch.randn(5, dtype=torch.complex64).conj().imag,  # a pending negation
        torch.randn(3, dtype=torch.complex128),
        torch.rand(11) < 0.5,
        torch.arange(5).to(torch.uint16),
        torch.arange(5, dtype=torch.int64),
        whole.permute(2, 0, 1),
        whole[::2, 1:3],
        torch.tensor([float("nan"), -0.0]),
        torch.randn(500, 600),  # by itself
        torch.randn(2),
    ]


def expected(tensor: torch.Tensor) -> bytes:
    plain = torch.empty(tensor.shape, dtype=tensor.dtype)
    plain.copy_(tensor)
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("apart", [False, True])
def test_send(apart: bool) -> None:
    """The bytes of every kind of tensor, and nothing of what is not theirs."""
    tensors = strange_tensors()
    pieces = [(tensor.nbytes, "a", apart and at % 3 == 0) for at, tensor in enumerate(tensors)]
    spans, _, others = laid_out(pieces)
    end = sum(spans[-1])
    slot = torch.full((end + 64,), 0xAB, dtype=torch.uint8)
    send(slot, spans, tensors, non_blocking=False)
    assert sum(len(run) > 1 for run in moves.runs(spans, ["a"] * len(spans))) > apart
    for (offset, count), tensor in zip(spans, tensors, strict=True):
        assert slot[offset : offset + count].numpy().tobytes() == expected(tensor), tensor
    assert all(slot[byte] == 0xAB for byte in others) and (slot[end:] == 0xAB).all()


class Recording:
    """A runtime that says yes, and what it was told."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = weakref.ref(mapping)
        self.calls: list[tuple[Any, ...]] = []

    def register(self, address: int, count: int, flags: int) -> int:
        self.calls.append(("register", address, count, flags))
        return 0

    def unregister(self, address: int) -> int:
        self.calls.append(("unregister", address, self.mapping() is not None))
        return 0


def test_pages_are_let_go_before_their_mapping_is() -> None:
    mapping = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    runtime = Recording(mapping)
    pinned: Pinned | None = Pinned(mapping, runtime)
    address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
    assert runtime.calls == [("register", address, 3 * mmap.PAGESIZE, 1)]
    del mapping
    gc.collect()
    assert runtime.mapping() is not None and len(runtime.calls) == 1
    pinned = None
    gc.collect()
    assert pinned is None and runtime.calls[1:] == [("unregister", address, True)]
    assert runtime.mapping() is None


def test_a_forked_child_leaves_the_pages_alone() -> None:
    runtime = Recording(mapping := mmap.mmap(-1, mmap.PAGESIZE))
    pinned: Pinned | None = Pinned(mapping, runtime)
    child = os.fork()
    if child == 0:
        pinned = None
        os._exit(len(runtime.calls))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert pinned is not None and len(runtime.calls) == 1


class Real:
    """CUDA's own runtime, asked for what it must refuse: memory that is registered already, or without a driver any."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def register(self, address: int, count: int, flags: int) -> int:
        code = int(self._library.cudaHostRegister(address, count, flags))
        if not code:
            code = int(self._library.cudaHostRegister(address, count, flags))
            assert not int(self._library.cudaHostUnregister(address))
        return code

    def unregister(self, address: int) -> int:
        raise AssertionError("nothing was registered")


class Raising(Real):
    """A torch whose binding raises."""

    def register(self, address: int, count: int, flags: int) -> int:
        raise RuntimeError("CUDA error: operation not supported")


def an_arena() -> Arena:
    fd = os.memfd_create("arena")
    shape = Shape(2, mmap.PAGESIZE, 0, 0)
    os.ftruncate(fd, shape.total_bytes)
    arena = make_arena(fd, bytes(ID_BYTES), shape, b"")
    os.close(fd)
    return arena


@pytest.mark.parametrize("kind", [Real, Raising])
def test_pages_that_cannot_be_locked_are_told_of_once(kind: type[Real], caplog: pytest.LogCaptureFixture) -> None:
    runtime = kind(torch._C._cudart)  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="can't be locked"):
        Pinned(mmap.mmap(-1, mmap.PAGESIZE), runtime)
    stager, arenas = Stager(find_place("job")), [an_arena(), an_arena()]
    with caplog.at_level(logging.WARNING, "ckptd"):
        for arena in arenas:
            stager._pin(arena, runtime)
    assert [arena.pinned for arena in arenas] == [None, None]
    assert [record.message.count("stops training") for record in caplog.records] == [1]


def test_pages_of_an_arena_are_locked_as_long_as_it_is_there() -> None:
    arena: Arena | None = an_arena()
    assert arena is not None
    runtime = Recording(arena.map)
    Stager(find_place("job"))._pin(arena, runtime)
    assert isinstance(arena.pinned, Pinned) and runtime.calls[0][2] == arena.shape.total_bytes
    arena = None
    gc.collect()
    assert [call[0] for call in runtime.calls] == ["register", "unregister"]
