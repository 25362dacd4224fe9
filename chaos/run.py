"""`make chaos`: break things at random, and check the invariants.

python -m chaos.run [--seed N]                                      the whole campaign: all acts, then bugs of our own
python -m chaos.run --acts way,disk,torch [--only "kill node,…"] [--times N] [--seed N]
python -m chaos.run --bugs all|"skip an fsync,…" [--seed N]
python -m chaos.run --victims trainer,daemon,… [--kills N] [--nodes N] [--store minio|directory] [--seed N]
python -m chaos.run --scenarios all|comings,save,… [--seed N] [--store minio|directory]
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.acts import ACTS, Tally, run_acts, run_bugs
from chaos.bugs import BUGS
from chaos.campaign import Orders, run
from chaos.comings import SCENARIOS, Visits, run_scenarios
from chaos.scene import ChaosError
from chaos.victims import STRIKES
from ckptd.errors import CkptdError

SEED: Final = 20261123


def main() -> None:
    """The command. Exit code 0 only if all held; logs are kept otherwise."""
    options = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: nothing may be left running
    directory = Path(tempfile.mkdtemp(prefix="ckptd-chaos-"))
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    say(f"seed {options.seed}; logs in {directory}")
    try:
        if isinstance(options, Visits):
            run_scenarios(options, directory, say)
        elif isinstance(options, Orders):
            run(options, directory, say)
        else:
            _campaign(options, directory, say)
    except (CkptdError, OSError, RuntimeError) as error:
        say(f"FAILED: {error}")
        print(f"logs: {directory}", flush=True)
        if isinstance(options, Visits | Orders):
            print(f"repeat: {options.repeat()}", flush=True)
        sys.exit(1)
    shutil.rmtree(directory, ignore_errors=True)
    say("all held")


@dataclass(frozen=True, slots=True)
class Campaign:
    """Acts and bugs to play."""

    seed: int
    acts: Sequence[str]
    only: Sequence[str]
    times: int | None
    bugs: Sequence[str]

    @property
    def whole(self) -> bool:
        """Is it all that there is?"""
        return len(self.acts) == len(ACTS) and len(self.bugs) == len(BUGS) and not self.only and self.times is None


def _campaign(campaign: Campaign, directory: Path, say: Callable[[str], None]) -> None:
    tally, began = Tally(), time.monotonic()
    try:
        run_acts(campaign.seed, campaign.acts, campaign.only, campaign.times, directory, say, tally)
        run_bugs(campaign.seed, campaign.bugs, directory, say, tally)
    finally:
        print("\n".join(tally.table()), flush=True)
    if campaign.whole:
        if short := tally.shortcomings():
            raise ChaosError("; ".join(short))
        tally.write(campaign.seed, time.monotonic() - began)


def _parse(arguments: list[str]) -> Campaign | Orders | Visits:
    parser = argparse.ArgumentParser(prog="python -m chaos.run", description="Break things at random, check the invariants.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--acts", help=f"some of {','.join(ACTS)}, without the bugs")
    parser.add_argument("--only", default="", help="the trials of these names alone")
    parser.add_argument("--times", type=int, help="each trial at most so often")
    parser.add_argument("--bugs", help=f"all, or some of {','.join(BUGS)}; without the acts")
    parser.add_argument("--victims", help=f"SIGKILLs in a torch training: some of {','.join(STRIKES)}")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--nodes", type=int, choices=range(2, 9), default=2)
    parser.add_argument("--scenarios", help=f"nodes of a training that come and go: all, or some of {','.join(SCENARIOS)}")
    parser.add_argument("--store", choices=["minio", "directory"], default="minio")
    options = parser.parse_args(arguments)

    def some(text: str, known: Collection[str]) -> list[str]:
        names = list(known) if text == "all" else text.split(",")
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    minio = options.store == "minio"
    if options.scenarios:
        return Visits(options.seed, some(options.scenarios, SCENARIOS), minio)
    if options.victims:
        victims = some(options.victims, [victim for victim in STRIKES if victim != "minio" or minio])
        return Orders(options.seed, options.kills, victims, minio, options.nodes)
    acts = some(options.acts, ACTS) if options.acts else [] if options.bugs else list(ACTS)
    bugs = some(options.bugs, BUGS) if options.bugs else [] if options.acts else list(BUGS)
    trials = {trial.name for act in ACTS.values() for trial, _ in act.trials}
    only = some(options.only, sorted(trials)) if options.only else []
    return Campaign(options.seed, acts, only, options.times, bugs)


if __name__ == "__main__":
    main()
