"""How the cost of a save and of a restore grows: with tensors, with bytes, with ranks on the node, with frame and segment size.

Curves are drawn into docs/curves. What grows by a power above 1 of what it depends on is worse than linear.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from typing import Final

import torch.distributed as dist

from benchmarks.curves import draw, exponent
from benchmarks.peers import Ckptd, State, empty_like
from benchmarks.result import Result, at_most
from benchmarks.rounds import Rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, rounds_of
from benchmarks.state import sharded, small
from benchmarks.worker import change, digest, tell

_LINEAR: Final = 1.1  # an exponent; what a fit through few and noisy points may be off
_BYTES: Final = 400_000_000
_TENSORS, _TENSORS_BYTES = (1_000, 10_000), 100_000_000
_SIZES: Final = (100_000_000, 1_000_000_000)
_RANKS: Final = (1, 2, 4)
_FRAMES: Final = (1 << 20, 2 << 20, 4 << 20)
_SEGMENTS: Final = (4 << 20, 16 << 20, 64 << 20)
Measured = Mapping[int, Rounds]  # by what is varied; its contenders are the kinds of cost


def measure(rounds: int) -> list[Result]:
    """Each point is a median of rounds in a world of its own."""
    with Stage() as stage:
        tensors = {n: _point(stage, f"tensors-{n}", 1, rounds, tensors=n, total_bytes=_TENSORS_BYTES) for n in _TENSORS}
        sizes = {n: _point(stage, f"bytes-{n}", 1, rounds, total_bytes=n) for n in _SIZES}
        ranks = {n: _point(stage, f"ranks-{n}", n, rounds) for n in _RANKS}
        frames = {n: _sized(stage, "FRAME_BYTES", n, rounds) for n in _FRAMES}
        segments = {n: _sized(stage, "SEGMENT_BYTES", n, rounds) for n in _SEGMENTS}
    return [
        _grown("scaling_tensors", "tensors, 100 MB in all", tensors, bounded=True),
        _grown("scaling_bytes", "bytes in 16 tensors", sizes, bounded=True),
        _grown("scaling_ranks", "ranks on the node, 400 MB in all", ranks, bounded=True),
        _grown("scaling_frames", "bytes of a frame, 400 MB in all", frames, bounded=False),
        _grown("scaling_segments", "bytes of a segment, 400 MB in all", segments, bounded=False),
    ]


def _sized(stage: Stage, setting: str, size: int, rounds: int) -> Rounds:
    return _point(stage, f"{setting.lower()}-{size}", 1, rounds, settings={f"CKPTD_DAEMON__{setting}": str(size)})


def _point(
    stage: Stage,
    name: str,
    ranks: int,
    rounds: int,
    *,
    tensors: int = 0,
    total_bytes: int = _BYTES,
    settings: Mapping[str, str] | None = None,
) -> Rounds:
    """In a job of its own: one that has checkpoints refuses a world that saves before it has loaded one."""
    where = stage.deploy(settings, name=name)
    try:
        return rounds_of(stage.ranks(cost, ranks, where=where, tensors=tensors, total_bytes=total_bytes, rounds=rounds))
    finally:
        where.close()


def _grown(figure: str, of_what: str, measured: Measured, *, bounded: bool) -> Result:
    """``bounded``: no kind of cost may grow faster than linearly."""
    kinds = next(iter(measured.values())).raw
    curves = {kind: [(float(x), statistics.median(rounds.raw[kind])) for x, rounds in measured.items()] for kind in kinds}
    draw(figure, f"Cost by {of_what}", of_what, "seconds", curves)
    exponents = {kind: exponent(points) for kind, points in curves.items()}
    raw = {f"{kind} {x}": rounds.raw[kind] for kind in kinds for x, rounds in measured.items()}
    return Result(
        figure,
        f"exponent of the growth by {of_what}, the steepest of {', '.join(kinds)}",
        "exponent",
        "lower",
        max(exponents.values()),
        1.0 if bounded else None,
        {},
        min(len(values) for values in raw.values()),
        tuple(at_most(f"exponent of {kind}", value, _LINEAR) for kind, value in exponents.items()) if bounded else (),
        raw=raw,
        notes={"seconds": curves, "exponents": exponents},
    )


def cost(bucket: str, where: dict[str, str], tensors: int, total_bytes: int, rounds: int) -> None:
    """In each rank: saves, the first two not counted, then loads into warm memory, each in a world of its own."""
    state: State = small(tensors, total_bytes) if tensors else sharded(total_bytes)
    raw: dict[str, list[float]] = {"stall_sync": [], "durable": [], "restore": []}
    ours = Ckptd(state, where)
    for number in range(2 + rounds):
        change(state)
        ours.before()
        dist.barrier()
        begun = time.perf_counter()
        ours.start(number)
        stalled = time.perf_counter()
        ours.finish()
        raw["stall_sync"].append(stalled - begun)
        raw["durable"].append(time.perf_counter() - begun)
    ours.close()
    given = empty_like(state)
    for _ in range(2 + rounds):
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)  # a world is known by its master's address
        ours = Ckptd(given, where)
        dist.barrier()
        begun = time.perf_counter()
        ours.load(given)
        raw["restore"].append(time.perf_counter() - begun)
        ours.close()
    if digest(given) != digest(state):
        raise RuntimeError("what was restored is not what was saved")
    tell(
        "rounds",
        first={kind: values[0] for kind, values in raw.items()},
        raw={kind: values[2:] for kind, values in raw.items()},
    )


if __name__ == "__main__":
    alone(measure, rounds=2)
