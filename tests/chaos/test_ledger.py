"""The ledger's judge: it accepts what a correct stream does over changing worlds, and finds each way of doing it wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from chaos.ledger import Book, Page, judge, read, surviving
from ckptd_client.data import micro_batches

NUM_SAMPLES, BATCH = 17, 6


def stream(step: int, rank: int, world: int, skew: int = 0) -> tuple[int, ...]:
    """What a rank trains on in a step; ``skew``: a position that was restored wrongly."""
    parts = micro_batches((step - 1) * BATCH + skew, NUM_SAMPLES, BATCH, world, rank, None, 1)
    return tuple(sample for indices, _ in parts for sample in indices)


def world(n: int, size: int, restored: int, last: int, skew: int = 0) -> list[Page]:
    """All pages of a generation that did the steps from ``restored`` + 1 to ``last``."""
    steps = range(restored + 1, last + 1)
    return [Page((1, n), r, size, restored, {step: stream(step, r, size, skew) for step in steps}) for r in range(size)]


def problems(pages: list[Page], last: int) -> list[str]:
    return judge(surviving(pages), last, NUM_SAMPLES, BATCH)


def test_a_walk_over_sizes_is_exactly_once() -> None:
    pages, restored, rng = [], 0, random.Random(1)
    for n in range(1, 30):
        done = restored + rng.randrange(0, 9)
        pages += world(n, rng.randrange(1, 4), restored, done)
        restored = rng.randint(restored, done)
    pages += world(30, 3, restored, restored + 20)
    rng.shuffle(pages)
    assert problems(pages, restored + 20) == []
    assert surviving(pages).void > 0


@pytest.mark.parametrize(
    ("pages", "found"),
    [
        (world(1, 2, 0, 10) + world(2, 1, 8, 20, skew=BATCH), "were not seen"),  # a batch skipped
        (world(1, 2, 0, 10) + world(2, 1, 8, 20, skew=-BATCH), "were not seen"),  # a batch twice
        (world(1, 2, 0, 10) + world(2, 1, 8, 20, skew=1), "were not seen"),
        (world(1, 2, 0, 7) + world(2, 1, 8, 20), "which nobody had trained"),
        (world(1, 2, 0, 10) + world(2, 1, 8, 19), "the steps that count are not 1 to 20: missing [20]"),
        (world(1, 2, 0, 10) + world(2, 3, 8, 20)[:2], "was trained by ranks [0, 1] of 3"),
        (world(1, 2, 0, 10) + world(2, 3, 8, 20)[:2] + world(2, 3, 9, 20)[2:], "disagree"),
        (world(1, 1, 0, 20) + world(2, 1, 20, 21), "beyond the end [21]"),
    ],
)
def test_what_is_wrong_is_found(pages: list[Page], found: str) -> None:
    assert any(found in problem for problem in problems(pages, 20)), problems(pages, 20)


def test_one_sample_for_another_is_found() -> None:
    (page,) = world(1, 1, 0, 20)
    steps: Mapping[int, tuple[int, ...]] = {**page.steps, 4: (page.steps[3][0], *page.steps[4][1:])}
    assert "after step 4" in problems([Page(page.generation, 0, 1, 0, steps)], 20)[0]


def test_books_are_read_as_they_were_written(tmp_path: Path) -> None:
    for page in world(1, 2, 0, 4):
        book = Book(str(tmp_path), page.generation, page.rank, page.world, page.restored)
        for step, samples in page.steps.items():
            book.trained(step, samples)
    assert read(tmp_path) == world(1, 2, 0, 4)
    with pytest.raises(FileExistsError):
        Book(str(tmp_path), (1, 1), 0, 2, 0)
    os.truncate(tmp_path / "1-1.1", (tmp_path / "1-1.1").stat().st_size - 1)  # killed while it wrote
    assert read(tmp_path)[1].steps.keys() == {1, 2, 3}
    (tmp_path / "1-1.1").write_text("nonsense\n")
    with pytest.raises(ValueError, match="no page of a ledger"):
        read(tmp_path)
