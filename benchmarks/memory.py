"""What all processes hold beyond those of a training without checkpoints, beside DCP's `async_save`."""

from __future__ import annotations

import os
import statistics

from benchmarks.result import Result, from_rounds
from benchmarks.stage import Stage

_GB = 1e9
_KINDS = {"draining": "at its peak while a save is on its way", "steady": "after it"}


def measure(total_bytes: int, rounds: int) -> list[Result]:
    """PSS over trainers, daemon and coordinator, or over trainers and DCP's processes. The limit is one copy of the state."""
    load = os.getloadavg()[0]
    held = {who: _world(who, total_bytes, rounds) for who in ("none", "ckptd", "dcp")}
    base = statistics.median(held["none"]["steady"])
    results = []
    for kind, when in _KINDS.items():
        raw = {
            "ckptd": [(value - base) / _GB for value in held["ckptd"][kind]],
            "dcp async_save": [(value - base) / _GB for value in held["dcp"][kind]],
        }
        shared = {who: statistics.median(held[who][f"{kind} shared"]) / _GB for who in ("ckptd", "dcp")}
        notes = {"state_bytes": total_bytes, "baseline_gb": base / _GB, "of_which_shared_memory_gb": shared}
        what = f"GB of memory beyond a training without checkpoints, {when}"
        results.append(from_rounds(f"memory_{kind}", what, "GB", raw, total_bytes / _GB, notes=notes, load=load))
    return results


def _world(who: str, total_bytes: int, rounds: int) -> dict[str, list[float]]:
    """PSS of one contender's world, by kind; the first two saves make what later ones use again."""
    with Stage() as stage:
        if who == "ckptd":
            stage.start_ckptd()
        arguments = ["--who", who, "--bytes", str(total_bytes), "--rounds", str(rounds)]
        told = stage.world(["memory", *arguments, "--coordinator-pid", str(stage.coordinator_pid)])[0]
    later = [event for event in told if event["event"] in _KINDS and event["round"] > 1]
    found = {kind: [event["pss"] for event in later if event["event"] == kind] for kind in _KINDS}
    return found | {f"{kind} shared": [event["shared"] for event in later if event["event"] == kind] for kind in _KINDS}
