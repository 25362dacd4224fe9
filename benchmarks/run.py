"""`python -m benchmarks.run [--figure NAME]`: measure, print a table, write benchmarks/results/<figure>.json."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from benchmarks import durable, memory, recovery, stall
from benchmarks.result import Result, table

_FIGURES = {"stall": stall, "durable": durable, "memory": memory, "recovery": recovery}
_ROUNDS = {"stall": 7, "durable": 5, "memory": 3, "recovery": 3}


def main() -> int:
    """Everything runs on this machine, one figure after the other."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--figure", choices=list(_FIGURES), help="only this one")
    parser.add_argument("--rounds", type=int, help="counted rounds; default by figure: " + str(_ROUNDS))
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state, over all ranks")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all that was started is ended
    results: list[Result] = []
    for name in [options.figure] if options.figure else list(_FIGURES):
        print(f"{name}: load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr, flush=True)
        measured = _FIGURES[name].measure(round(options.gigabytes * 1e9), options.rounds or _ROUNDS[name])
        for result in measured:
            print(f"  {result.save()}", file=sys.stderr)
        results += measured
    print(table(results))
    for result in results:
        if result.first:
            print(
                f"first {result.figure}: "
                + ", ".join(f"{who} {value:.3g} {result.unit}" for who, value in result.first.items())
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
