"""Copies of tensors by two threads."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator

import pytest
import torch

from ckptd_client import moving
from ckptd_client.moving import copy_many

_MANY = 5 << 20  # bytes of each big one


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of threads that helped. Little is much here, and there are two cores."""
    found: list[str] = []
    run = moving.Moves.run

    def noted(self: moving.Moves) -> None:
        found.append(threading.current_thread().name)
        run(self)

    monkeypatch.setattr(moving, "SHARED_BYTES", 8 << 20)
    monkeypatch.setattr(moving, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(moving.Moves, "run", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return found


def sources() -> list[torch.Tensor]:
    """Big and small, in a row and not, of several kinds."""
    generator = torch.Generator().manual_seed(7)
    plain = torch.randint(0, 2**31, (_MANY // 4 + 3,), dtype=torch.int32, generator=generator)
    wide = torch.randn(_MANY // 8, 4, generator=generator)
    return [
        plain,
        plain[1:],
        wide.t(),
        torch.nn.Parameter(wide[: _MANY // 32]),
        torch.randn(7, generator=generator),
        torch.randn(_MANY // 8, dtype=torch.complex64, generator=generator).conj(),
        torch.empty(0),
        torch.randn(_MANY // 2, generator=generator).bfloat16(),
        torch.tensor(3.5),
    ]


def empty_like(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_every_byte_is_copied_and_a_thread_helps(helpers: list[str]) -> None:
    given = sources()
    copies = empty_like(given)
    copy_many(copies, given)
    assert same(copies, given)
    assert sorted(helpers) == sorted(["ckptd-copy", threading.current_thread().name])
    assert not [thread for thread in threading.enumerate() if thread.name == "ckptd-copy"]


def test_what_becomes_another_type_is_converted(helpers: list[str]) -> None:
    given = [torch.arange(_MANY, dtype=torch.int64), torch.arange(_MANY, dtype=torch.float32)]
    copies = [torch.zeros(_MANY), torch.zeros(_MANY, dtype=torch.bfloat16)]
    copy_many(copies, given)
    assert same(copies, [given[0].float(), given[1].bfloat16()])


@pytest.mark.parametrize("reason", ["torch has threads", "one core", "few bytes"])
def test_alone(helpers: list[str], monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    given = sources()
    if reason == "torch has threads":
        torch.set_num_threads(2)
    elif reason == "one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    else:
        given = given[:1]
    copies = empty_like(given)
    copy_many(copies, given)
    assert same(copies, given) and not helpers


def test_where_no_thread_can_be_started(helpers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    given = sources()
    copies = empty_like(given)
    copy_many(copies, given)
    assert same(copies, given) and helpers == [threading.current_thread().name]


def test_the_helper_has_ended_when_copying_fails(helpers: list[str]) -> None:
    given = sources()
    copies = empty_like(given)
    copies[4] = torch.zeros(8)  # another shape
    with pytest.raises(RuntimeError):
        copy_many(copies, given)
    assert not [thread for thread in threading.enumerate() if thread.name == "ckptd-copy"]


def test_what_fails_in_the_helper_is_told(helpers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    me, move = threading.get_ident(), moving._move

    def fails(to: int, source: int, count: int) -> None:
        if threading.get_ident() != me:
            raise MemoryError("none left")
        met.wait(10)
        move(to, source, count)

    met = threading.Event()
    run = moving.Moves.run

    def noted(self: moving.Moves) -> None:
        try:
            run(self)
        finally:
            met.set()

    monkeypatch.setattr(moving, "_move", fails)
    monkeypatch.setattr(moving.Moves, "run", noted)
    given = sources()
    with pytest.raises(MemoryError, match="none left"):
        copy_many(empty_like(given), given)


def test_no_byte_beside_those_that_are_meant() -> None:
    """However they lie to the cache's lines, of few bytes and of many, which are written past the caches."""
    generator = random.Random(11)
    given = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)
    for count in [0, 1, 63, 64, 65, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, (1 << 20) - 200]:
        for _ in range(20):
            to, source = generator.randrange(200), generator.randrange(200)
            room = torch.zeros(1 << 20, dtype=torch.uint8)
            moving._move(room.data_ptr() + to, given.data_ptr() + source, count)
            assert torch.equal(room[to : to + count], given[source : source + count]), (count, to, source)
            assert not room[:to].any() and not room[to + count :].any(), (count, to, source)


def test_nothing() -> None:
    copy_many([], [])
