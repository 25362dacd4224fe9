"""What a drain does to the steps of a trainer, beside what a loop that streams through memory does with as much CPU.

One trainer thread, one daemon thread, a store that takes no time (`null_ckptd`): no network, and no server on the same cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ckptd_client
from benchmarks.processes import cpu_seconds
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import Rounds, interleave
from benchmarks.run import alone
from benchmarks.stage import Stage, events
from benchmarks.state import few
from benchmarks.worker import tell
from examples.train_gpt import GPT

_BYTES = 1_000_000_000
_WINDOW_SECONDS = 1.0  # short ones, and more of them: whoever shares the host slows one for some seconds
_CODECS = {"drain": "raw", "drain_encoded": "planes"}
_NULL = Path(__file__).with_name("null_ckptd.py")
# argv: share of a core. The last value of a sum keeps numpy from being clever; 16 MiB are some ms.
_STREAM = """
import sys, time, numpy
memory, share = numpy.ones(1 << 26), float(sys.argv[1])
print("ready", flush=True)
while True:
    for at in range(0, memory.size, 1 << 21):
        begun = time.thread_time()
        memory[at : at + (1 << 21)].sum()
        time.sleep((time.thread_time() - begun) * (1 / share - 1))
"""


def measure(rounds: int) -> list[Result]:
    """Mean seconds of the steps in a window in which the daemon always has something to drain, ÷ those of an idle one."""
    os.environ["CKPTD_EXECUTABLE"] = f"{sys.executable} {_NULL}"
    with Stage() as stage:
        settings = {"CKPTD_DAEMON__CPU_THREADS": "1"}
        daemons = {
            figure: stage.deploy(
                {**settings, "CKPTD_DAEMON__CODEC": codec}, name=figure.replace("_", "-"), store=stage.scratch()
            )
            for figure, codec in _CODECS.items()
        }
        pids = {figure: daemon.daemon_pid for figure, daemon in daemons.items()}
        (told,) = events(stage.ranks(train, 1, pids=pids, rounds=rounds, **daemons), "windows")
    (found,) = told
    return [_result(figure, Rounds(found["first"], found["raw"]), found["shares"][figure]) for figure in _CODECS]


def _result(figure: str, seconds: Rounds, shares: list[float]) -> Result:
    def over_idle(name: str) -> list[float]:
        return [value / idle for value, idle in zip(seconds.raw[name], seconds.raw["idle"], strict=True)]

    rounds = Rounds({}, {"ckptd": over_idle(figure), "streaming": over_idle(f"{figure} streaming")})
    what = f"step time of a one-thread trainer while the daemon drains, codec {_CODECS[figure]}, ÷ idle"
    notes = {"state_bytes": _BYTES, "daemon_cores": shares, "idle_step_seconds": seconds.raw["idle"]}
    result = from_rounds(figure, what, "ratio", rounds, "streaming", notes=notes)
    assert result.ratio_to_limit is not None
    return result.holding(at_most("÷ streaming", result.ratio_to_limit, 1.05))


def train(bucket: str, pids: dict[str, int], rounds: int, **where: dict[str, str]) -> None:
    """In the one rank."""
    step = _stepper()
    state = few(_BYTES)
    shares: dict[str, list[float]] = {figure: [] for figure in pids}

    def idle(_: int) -> float:
        return _window(step, lambda: None)

    def draining(figure: str) -> Callable[[int], float]:
        checkpointer = ckptd_client.connect(where[figure]["job"], socket=Path(where[figure]["socket"]))
        handle, number = checkpointer.save(state, 1), 1

        def save() -> None:
            nonlocal handle, number
            if handle.durable:
                number += 1
                handle = checkpointer.save(state, number)

        def window(_: int) -> float:
            before, begun = cpu_seconds([pids[figure]]), time.perf_counter()
            seconds = _window(step, save)
            shares[figure].append((cpu_seconds([pids[figure]]) - before) / (time.perf_counter() - begun))
            handle.wait(60.0)
            return seconds

        handle.wait(60.0)
        return window

    def streaming(figure: str) -> Callable[[int], float]:
        def window(_: int) -> float:
            share = min(max(shares[figure][-1] if shares[figure] else 0.5, 0.01), 0.99)
            with subprocess.Popen([sys.executable, "-c", _STREAM, str(share)], stdout=subprocess.PIPE) as process:
                try:
                    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
                    return _window(step, lambda: None)
                finally:
                    process.kill()

        return window

    contenders = {"idle": idle}
    for figure in pids:
        contenders[figure] = draining(figure)
        contenders[f"{figure} streaming"] = streaming(figure)
    found = interleave(contenders, rounds)
    tell("windows", first=found.first, raw=found.raw, shares={figure: values[-rounds:] for figure, values in shares.items()})


def _stepper() -> Callable[[], None]:
    """A real step of a small model with AdamW."""
    torch.manual_seed(1)
    model = GPT(context=64, width=256, layers=4, heads=4)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 256, (4, 65))

    def step() -> None:
        optimizer.zero_grad()
        scores = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def _window(step: Callable[[], None], between: Callable[[], None]) -> float:
    """Mean seconds of a step; what is between steps isn't counted."""
    seconds, end = [], time.perf_counter() + _WINDOW_SECONDS
    while time.perf_counter() < end:
        between()
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return sum(seconds) / len(seconds)


if __name__ == "__main__":
    alone(measure, rounds=31)
