"""Interleaved rounds of several contenders in the same two ranks, and the check that what was saved comes back."""

from __future__ import annotations

import os

from benchmarks.result import Result, from_rounds
from benchmarks.stage import RANKS, Stage, check_digests, slowest


def compete(figure: str, what: str, limit: str, total_bytes: int, rounds: int) -> Result:
    """One world that measures, another that loads what it saved last."""
    load = os.getloadavg()[0]
    with Stage() as stage:
        stage.start_ckptd()
        size = ["--bytes", str(total_bytes)]
        told = stage.world([figure, *size, "--rounds", str(rounds)])
        expected = check_digests(told)
        check_digests(stage.world(["load", *size]), expected)
    first = {who: values[0] for who, values in slowest(told, first=True).items()}
    notes = {"state_bytes": total_bytes, "ranks": RANKS, "bit_equal_after_restore": True}
    return from_rounds(figure, what, "s", slowest(told, first=False), limit, first=first, notes=notes, load=load)
