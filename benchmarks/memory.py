"""What all processes hold beyond those of a training without checkpoints, beside DCP's `async_save`."""

from __future__ import annotations

import os
import statistics
import threading

import torch.distributed as dist

from benchmarks.peers import Ckptd, Contender, Dcp, FsspecStorage
from benchmarks.processes import Memory, memory
from benchmarks.result import Result, from_rounds
from benchmarks.rounds import WARM_UP, Rounds
from benchmarks.run import alone
from benchmarks.stage import Deployment, Stage, events
from benchmarks.state import sharded
from benchmarks.worker import change, tell
from ckptd.demo.process import pids_with

_BYTES = 1_000_000_000
_RANKS = 2
_SAMPLE_SECONDS = 0.02
_KINDS = {"draining": "at its peak while a save is on its way", "steady": "after it"}
_PEER = "dcp async_save process"


def measure(rounds: int) -> list[Result]:
    """PSS over trainers, daemon and coordinator, or over trainers and DCP's processes. The limit is one copy of the state."""
    held = {who: _world(who, rounds) for who in ("none", "ckptd", _PEER)}
    base = statistics.median(held["none"]["steady"])
    results = []
    for kind, when in _KINDS.items():
        raw = {who: [(value - base) / 1e9 for value in held[who][kind]] for who in ("ckptd", _PEER)}
        shared = {who: statistics.median(held[who][f"{kind} shared"]) / 1e9 for who in ("ckptd", _PEER)}
        notes = {"state_bytes": _BYTES, "baseline_gb": base / 1e9, "of_which_shared_memory_gb": shared}
        what = f"GB of memory beyond a training without checkpoints, {when}"
        results.append(from_rounds(f"memory_{kind}", what, "GB", Rounds({}, raw), _BYTES / 1e9, notes=notes))
    return results


def _world(who: str, rounds: int) -> dict[str, list[float]]:
    """PSS of one contender's world, by kind; the first saves make what later ones use again."""
    with Stage() as stage:
        where: Deployment | None = stage.deploy() if who == "ckptd" else None
        told = stage.ranks(hold, _RANKS, who=who, rounds=rounds, where=where)
    found: dict[str, list[float]] = {}
    for event in events(told, "held")[0]:
        if event["round"] >= WARM_UP:
            found.setdefault(event["kind"], []).append(event["pss"])
            found.setdefault(f"{event['kind']} shared", []).append(event["shared"])
    return found


def hold(bucket: str, who: str, rounds: int, where: dict[str, str] | None) -> None:
    """In each rank: save now and then, and watch what all processes hold: while a save is on its way, and after it."""
    state = sharded(_BYTES)
    contender: Contender | None = None
    if where is not None:
        contender = Ckptd(state, where)
    elif who == _PEER:
        contender = Dcp(who, state, FsspecStorage(f"{bucket}/dcp", tuned=True), "process")
    for number in range(WARM_UP + rounds):
        change(state)
        if contender is not None:
            contender.before()
        dist.barrier()
        if contender is not None:
            contender.start(number)
        samples = watch(contender) if dist.get_rank() == 0 else []
        if contender is not None:
            contender.finish()
        dist.barrier()
        if dist.get_rank() == 0:
            after = memory(pids())
            peak = max([*samples, after], key=lambda sample: sample.pss_bytes)
            for kind, found in (("steady", after), ("draining", peak)):
                tell("held", kind=kind, round=number, pss=found.pss_bytes, shared=found.shared_bytes)
        dist.barrier()
    if contender is not None:
        contender.close()


def pids() -> list[int]:
    """Everything of this stage: its trainers and their children, its daemon and its coordinator, but not the server."""
    return pids_with("BENCH_TRASH", os.environ["BENCH_TRASH"])


def watch(contender: Contender | None) -> list[Memory]:
    """Samples from now until the save has ended; what waits for that end is a thread of ours."""
    if contender is None:
        return []
    over = threading.Event()

    def wait() -> None:
        try:
            contender.finish()
        finally:
            over.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    watched = pids()
    samples = []
    while not over.wait(_SAMPLE_SECONDS):
        samples.append(memory(watched))
    waiting.join()
    return samples


if __name__ == "__main__":
    alone(measure, rounds=3)
