"""Troubles: two lines in the log for each, however often it is noticed."""

from __future__ import annotations

import pytest

from ckptd.troubles import MAX_TROUBLES, Trouble, Troubles
from tests.clock import FakeClock


class Heard:
    """What the log was told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.troubles = Troubles(self.clock, lambda: 5000.0 + self.clock.monotonic())
        self.lines: list[tuple[str, float | None]] = []
        self.troubles.heard = lambda trouble, seconds: self.lines.append((trouble.what, seconds))
        self.start = self.clock.monotonic()

    async def later(self, seconds: float) -> None:
        await self.clock.sleep(seconds)


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def test_noticed_often_and_said_once(heard: Heard) -> None:
    for _ in range(10):
        heard.troubles.begin("store", "gone")
        await heard.later(30)
    assert heard.lines == [("gone", None)]
    assert heard.troubles.all() == [Trouble("store", "gone", 5000.0 + heard.start, 10)]
    heard.troubles.end("store")
    heard.troubles.end("store")
    assert heard.lines == [("gone", None), ("gone", 300.0)]
    assert heard.troubles.all() == []


async def test_what_comes_and_goes_is_said_once_a_minute(heard: Heard) -> None:
    for _ in range(600):
        heard.troubles.begin("store", "flaky")
        await heard.later(0.5)
        heard.troubles.end("store")
        await heard.later(0.5)
    began = [what for what, seconds in heard.lines if seconds is None]
    ended = [what for what, seconds in heard.lines if seconds is not None]
    assert len(began) == len(ended) == 10


async def test_what_goes_on_after_coming_and_going_is_said(heard: Heard) -> None:
    heard.troubles.begin("store", "gone")
    heard.troubles.end("store")
    await heard.later(1)
    heard.troubles.begin("store", "gone")
    assert len(heard.lines) == 2
    await heard.later(60)
    heard.troubles.begin("store", "gone")
    assert heard.lines[2:] == [("gone", None)]


async def test_other_words_for_the_same_are_said_once_a_minute(heard: Heard) -> None:
    for n in range(120):
        heard.troubles.begin("aborts", f"{n} in a row")
        await heard.later(1)
    assert heard.lines == [("0 in a row", None), ("60 in a row", None)]


def test_a_job_sees_its_own_and_everybodys(heard: Heard) -> None:
    heard.troubles.begin("store", "gone")
    heard.troubles.begin("coordinator", "silent", job="one")
    heard.troubles.begin("coordinator", "silent too", job="two")
    assert [trouble.what for trouble in heard.troubles.of("one")] == ["gone", "silent"]
    heard.troubles.forget("two")
    assert [trouble.what for trouble in heard.troubles.all()] == ["gone", "silent"]


def test_only(heard: Heard) -> None:
    heard.troubles.only({"a": "1", "b": "2"})
    heard.troubles.only({"b": "2", "c": "3"})
    assert [trouble.topic for trouble in heard.troubles.all()] == ["b", "c"]
    heard.troubles.only({})
    assert heard.troubles.all() == []


def test_bounds(heard: Heard) -> None:
    for n in range(10 * MAX_TROUBLES):
        heard.troubles.begin(str(n), "x" * 10_000)
    assert len(heard.troubles.all()) == MAX_TROUBLES
    assert max(len(trouble.what) for trouble in heard.troubles.all()) == 500
