"""`make chaos`: kill things at random, and check the invariants.

python -m chaos.run [--seed N] [--kills N] [--victims trainer,daemon,…] [--nodes N] [--store minio|directory]
python -m chaos.run --scenarios all|comings,save,… [--seed N] [--store minio|directory]
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import Orders, run
from chaos.comings import SCENARIOS, Visits, run_scenarios
from chaos.victims import STRIKES
from ckptd.errors import CkptdError


def main() -> None:
    """The command. Exit code 0 only if all held; logs are kept otherwise."""
    orders = _parse(sys.argv[1:])
    directory = Path(tempfile.mkdtemp(prefix="ckptd-chaos-"))
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    names = orders.names if isinstance(orders, Visits) else orders.drawn()
    say(f"seed {orders.seed}: {', '.join(names)}; logs in {directory}")
    try:
        if isinstance(orders, Visits):
            run_scenarios(orders, directory, say)
        else:
            run(orders, directory, say)
    except (CkptdError, OSError, RuntimeError) as error:
        say(f"FAILED: {error}")
        print(f"logs: {directory}\nrepeat: {orders.repeat()}", flush=True)
        sys.exit(1)
    shutil.rmtree(directory, ignore_errors=True)
    say("all held")


def _parse(arguments: list[str]) -> Orders | Visits:
    parser = argparse.ArgumentParser(prog="python -m chaos.run", description="Kill things at random, check the invariants.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: a random one")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--victims", help=f"some of {','.join(STRIKES)} (default: all that the store allows)")
    parser.add_argument("--nodes", type=int, choices=range(2, 9), default=2)
    parser.add_argument("--scenarios", help=f"nodes that come and go, instead of kills: all, or some of {','.join(SCENARIOS)}")
    parser.add_argument("--store", choices=["minio", "directory"], default="minio")
    options = parser.parse_args(arguments)
    if options.scenarios:
        names = list(SCENARIOS) if options.scenarios == "all" else options.scenarios.split(",")
        if unknown := [name for name in names if name not in SCENARIOS]:
            parser.error(f"no such scenarios: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
        return Visits(options.seed, names, options.store == "minio")
    possible = [victim for victim in STRIKES if victim != "minio" or options.store == "minio"]
    victims = options.victims.split(",") if options.victims else possible
    if unknown := [victim for victim in victims if victim not in possible]:
        parser.error(f"no victims on this store: {', '.join(unknown)}; possible are {', '.join(possible)}")
    return Orders(options.seed, options.kills, victims, options.store == "minio", options.nodes)


if __name__ == "__main__":
    main()
