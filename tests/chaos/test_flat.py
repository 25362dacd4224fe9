"""What the flatness check calls growth: a slow leak, whatever the noise; not a heap that grew once, nor a few odd looks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.flat import EVERY, Sight, judge
from chaos.vitals import Vitals, held, look, slope

CHECKPOINTS = 2000
NOISE_BYTES = 100 << 10  # more than was seen between two looks


def sights(change: Callable[[Sight], Sight]) -> list[Sight]:
    """A run of flat processes with noise, changed look by look."""
    rng = random.Random(1)

    def one(at: int) -> Sight:
        daemon = Vitals((78 << 20) + rng.randrange(NOISE_BYTES), 23, 15, 0)
        coordinator = Vitals((82 << 20) + rng.randrange(NOISE_BYTES), 19, 19, 0)
        return change(Sight(at, daemon, coordinator, 2, 110_592, 100))

    return [one(at) for at in range(0, CHECKPOINTS, EVERY)]


def more(vitals: Vitals, **grown: int) -> Vitals:
    return replace(vitals, **{name: getattr(vitals, name) + by for name, by in grown.items()})


def test_noise_is_no_growth() -> None:
    assert judge(sights(lambda sight: sight)) == []


def test_a_heap_that_grows_once_or_in_the_beginning_is_no_growth() -> None:
    def changed(sight: Sight) -> Sight:
        by = 8192 * min(sight.checkpoints, 500) + (300 << 10) * (sight.checkpoints > 1800)
        return replace(sight, daemon=more(sight.daemon, private_bytes=by))

    assert judge(sights(changed)) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: replace(s, daemon=more(s.daemon, private_bytes=1024 * s.checkpoints)), "memory of the daemon grows by"),
        (
            lambda s: replace(s, coordinator=more(s.coordinator, private_bytes=1024 * s.checkpoints)),
            "memory of the coordinator grows by",
        ),
        (lambda s: replace(s, daemon=more(s.daemon, fds=s.checkpoints // 500)), "fds of the daemon grew from 25 to 26"),
        (
            lambda s: replace(s, coordinator=more(s.coordinator, threads=s.checkpoints // 900)),
            "threads of the coordinator grew",
        ),
        (
            lambda s: replace(s, daemon=more(s.daemon, children=s.checkpoints // 1900)),
            "children of the daemon grew from 0 to 1",
        ),
        (lambda s: replace(s, shm_files=2 + s.checkpoints // 1500), "files of shared memory grew"),
        (lambda s: replace(s, objects=4 * s.checkpoints), "objects in the store grew from"),
        (lambda s: replace(s, shm_bytes=s.shm_bytes + 4096 * (s.checkpoints // 300)), "bytes of shared memory grew"),
    ],
)
def test_each_leak_is_found(change: Callable[[Sight], Sight], found: str) -> None:
    problems = judge(sights(change))
    assert len(problems) == 1 and found in problems[0], problems


def test_slope_is_that_of_most_of_the_points() -> None:
    line = [(float(x), 5.0 * x + 7) for x in range(40)]
    assert slope(line) == 5.0
    assert slope([*line, (41.0, 1e9), (42.0, -1e9)]) == pytest.approx(5.0)


def test_a_process_is_seen_as_the_kernel_has_it(tmp_path: Path) -> None:
    before = look(os.getpid())
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    grown = bytearray(os.urandom(32 << 20))
    after = look(os.getpid())
    for fd in opened:
        os.close(fd)
    assert after.fds == before.fds + 3
    assert after.private_bytes - before.private_bytes > len(grown) // 2  # the rest may have been the heap's already
    (tmp_path / "a").write_bytes(bytes(8192))
    assert held(tmp_path) == (1, (tmp_path / "a").stat().st_blocks * 512)
