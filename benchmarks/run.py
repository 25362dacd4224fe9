"""`python -m benchmarks.run`: all figures, a table, a file each in benchmarks/results. One: `python -m benchmarks.<figure>`.

Exit code 1 when a bar is missed or a figure fails; the others are taken all the same.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import FIGURES
from benchmarks.machine import NOISY_CORES, machine
from benchmarks.result import RESULTS, Result, read
from benchmarks.table import show

_FIGURE_SECONDS = 600.0
_STOP_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Each figure in a process of its own, so that none can take the others with it."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, help="counted rounds; each figure has a number of its own")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all that was started is ended
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    taken = {name: take([sys.executable, "-m", f"benchmarks.{name}", *rounds]) for name in FIGURES}
    failed = [name for name, results in taken.items() if results is None]
    return verdict([result for results in taken.values() for result in results or ()], failed)


def alone(measure: Callable[[int], list[Result]], rounds: int) -> None:
    """What a figure's file does when it is run: measure, save, show. Exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=importlib.import_module(measure.__module__).__doc__)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"counted rounds, {rounds} by default")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    place = machine()
    busy = float(str(place["busy_cores_before"]))
    if busy > NOISY_CORES:
        print(f"warning: others keep {busy:.1f} cores busy; figures of a noisy machine say little", file=sys.stderr)
    results = [replace(result, machine=place) for result in measure(options.rounds)]
    for result in results:
        print(f"  {result.save()}", file=sys.stderr)
    sys.exit(verdict(results, []))


def take(command: Sequence[str], directory: Path = RESULTS) -> list[Result] | None:
    """Run one figure; what it has saved, or None when it failed or took too long: its own output says how."""
    begun = time.time_ns()
    print(f"\n{' '.join(command[1:])}", file=sys.stderr, flush=True)
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(_FIGURE_SECONDS)
        except BaseException as error:
            process.terminate()  # in order: it has servers to stop
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None
    results = [read(path) for path in sorted(directory.glob("*.json")) if path.stat().st_mtime_ns >= begun]
    missed = any(result.missed for result in results)
    return results if results and code == (1 if missed else 0) else None


def verdict(results: Sequence[Result], failed: Sequence[str]) -> int:
    """Show it all; 0 only if every bar holds and every figure was taken."""
    show(results)
    missed = [(result, bar) for result in results for bar in result.missed]
    for result, bar in missed:
        print(f"missed: {result.figure}: {bar.name} {bar.bound:g}, but it is {bar.value:.3g}", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}: no result", file=sys.stderr)
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
