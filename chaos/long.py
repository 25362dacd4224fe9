"""The long checks: what shows only after many kills, or many checkpoints.

python -m chaos.long fixed [--seed N] [--kills 30] [--steps 600] [--nodes 2]
python -m chaos.long changing [--seed N] [--kills 20] [--nodes 3]
python -m chaos.long flat [--checkpoints 2000] [--leak BYTES]
python -m chaos.long layouts [--seed N] [--pairs 50000]
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos import changing, fixed, flat, layouts
from ckptd.errors import CkptdError


def main() -> None:
    """The command. Exit code 0 only if all held; logs are kept otherwise."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # what was started is ended on the way out
    directory = Path(tempfile.mkdtemp(prefix="ckptd-long-"))
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    say(f"{options.check}, seed {options.seed}; logs in {directory}")
    try:
        if options.check == "fixed":
            fixed.run(options.seed, directory, say, options.kills or 30, options.steps, options.nodes or 2)
        elif options.check == "changing":
            changing.run(options.seed, directory, say, options.kills or 20, options.nodes or 3)
        elif options.check == "layouts":
            layouts.run(options.seed, directory, say, options.pairs)
        else:
            flat.run(directory, say, options.checkpoints, options.leak)
    except (CkptdError, OSError, RuntimeError) as error:
        say(f"FAILED: {error}")
        print(f"logs: {directory}", flush=True)
        sys.exit(1)
    shutil.rmtree(directory, ignore_errors=True)
    say("all held")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos.long", description="What shows only in the long run.")
    parser.add_argument("check", choices=["fixed", "changing", "flat", "layouts"])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: a random one")
    parser.add_argument("--kills", type=int, help="default: 30 in the fixed world, 20 in the changing one")
    parser.add_argument("--steps", type=int, default=600, help="of the fixed world")
    parser.add_argument("--nodes", type=int, choices=range(2, 9), help="default: 2 in the fixed world, 3 in the changing one")
    parser.add_argument("--checkpoints", type=int, default=2000, help="of the flatness check")
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES", help="a leak to be found, per checkpoint")
    parser.add_argument("--pairs", type=int, default=50_000, help="of layouts, to save from one and load into the other")
    return parser.parse_args()


if __name__ == "__main__":
    main()
