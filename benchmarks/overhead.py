"""What a snapshot in every step costs a training of one thread: 50 MB, steps of about 300 ms, nothing draining.

Nothing drains because the daemon is the one of the client's tests, in a process of its own: it speaks the real protocol on a
real socket with a real arena, calls what is sealed durable at once, and reads nothing of it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import interleave
from benchmarks.run import alone

_PARAMETERS, _WIDTH = 4, 1024  # matrices of 1024 x 1024: 50 MB with AdamW's moments
_STEP_SECONDS = 0.3
_STEPS = 8  # that count in a turn
_START_SECONDS = 60.0


def measure(rounds: int) -> list[Result]:
    """Turns of some steps with and some without snapshots."""
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "daemon.sock"
        daemon = context.Process(target=serve, args=(socket, ready, end))
        daemon.start()
        try:
            if not ready.wait(_START_SECONDS):
                raise RuntimeError("the daemon did not start")
            return [train(socket, rounds)]
        finally:
            end.set()
            daemon.join()


def serve(socket: Path, ready: Event, end: Event) -> None:
    """The daemon's process."""
    from tests.client.fake_daemon import Checkpoint, FakeDaemon, Trainer

    class Swallowing(FakeDaemon):
        """Keeps nothing of what is sealed."""

        def _absorb(self, into: Checkpoint, trainer: Trainer, sealed: Any) -> None: ...

    daemon = Swallowing(socket, schedule=(1, 1))
    ready.set()
    end.wait()
    daemon.stop()


def train(socket: Path, rounds: int) -> Result:
    """The trainer's part; the value of a turn is its fastest step, as whoever shares the host slows single steps by a fifth.

    There is a snapshot in each of them, and behind each the copy of the one before. The notes have the median of all steps.
    """
    import ckptd_client

    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(_PARAMETERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = 64

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(batch, _WIDTH)).square().mean().backward()
        optimizer.step()

    while (seconds := min(_timed(step) for _ in range(3))) < 0.9 * _STEP_SECONDS:
        batch = int(batch * min(4.0, max(1.1, _STEP_SECONDS / seconds)))
    ckpt = ckptd_client.connect("overhead", socket=socket)
    ckpt.register(model=model, optimizer=optimizer)
    done, taken = ckpt.restore(), 0
    steps: dict[str, list[float]] = {"ckptd": [], "without": []}

    def with_snapshots(number: int) -> float:
        nonlocal done, taken
        values = []
        for _ in range(1 + _STEPS):  # the first has no copy behind it
            begun = time.perf_counter()
            step()
            done += 1
            handle = ckpt.step(done)
            values.append(time.perf_counter() - begun)
            taken += handle is not None
        if handle is not None:
            handle.wait(_START_SECONDS)
        steps["ckptd"] += values[1:]
        return min(values[1:])

    def without(number: int) -> float:
        values = [_timed(step) for _ in range(1 + _STEPS)][1:]
        steps["without"] += values
        return min(values)

    found = interleave({"without": without, "ckptd": with_snapshots}, rounds)
    ckpt.close()
    if taken < 0.9 * done:
        raise RuntimeError(f"only {taken} of {done} steps were snapshots")
    notes = {"batch": batch, "snapshots": taken, "steps_of_a_turn": _STEPS, "state_bytes": 3 * 4 * _PARAMETERS * _WIDTH**2}
    notes |= {f"median_seconds_{name}": statistics.median(values) for name, values in steps.items()}
    result = from_rounds("overhead", "seconds of a step with a snapshot of 50 MB in each", "s", found, "without", notes=notes)
    assert result.ratio_to_limit is not None
    return result.holding(at_most("÷ without", result.ratio_to_limit, 1.03))


def _timed(step: Any) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    alone(measure, rounds=7)
