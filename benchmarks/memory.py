"""What ckptd holds on a node, all processes and shared memory together, beside DCP's `async_save`: in units of the state.

Steady, while a save is on its way, while a restore is, and while what three ranks have saved is restored by two.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

import torch.distributed as dist

from benchmarks.peers import Ckptd, Contender, Dcp, FsspecStorage, empty_like
from benchmarks.processes import memory
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import WARM_UP, Rounds
from benchmarks.run import alone
from benchmarks.stage import Deployment, Stage, Told, check_digests, events
from benchmarks.state import sharded
from benchmarks.worker import change, digest, tell
from ckptd.config import DaemonSettings
from ckptd.demo.process import pids_with

_BYTES: Final = 2_000_000_000  # so much that processes' own hundreds of megabytes don't hide what grows with the state
_SAMPLE_SECONDS: Final = 0.02
_MOST: Final = 2.2
_PEER: Final = "dcp async_save process"
_WHEN: Final = {
    "steady": "when nothing is on its way",
    "draining": "at its peak while a save is on its way",
    "restoring": "at its peak while two ranks restore what two have saved",
    "resharding": "at its peak while two ranks restore what three have saved",
}


def measure(rounds: int) -> list[Result]:
    """PSS of all processes, less what the trainers' own were before they connected. The limit is one copy of the state."""
    raw: dict[str, dict[str, list[float]]] = {kind: {} for kind in _WHEN}
    own: list[float] = []
    with Stage() as stage:
        ours = stage.deploy()
        told = stage.ranks(hold, 2, who="ckptd", rounds=rounds, where=ours, servers=ours.pids(), daemon=ours.daemon_pid)
        _take(told, "ckptd", raw, own)
        _take(_restore(stage, ours, rounds, told), "ckptd", raw, own)
    with Stage() as stage:
        ours = stage.deploy()
        told = stage.ranks(hold, 3, who="ckptd", rounds=0, where=ours, servers=ours.pids(), daemon=ours.daemon_pid)
        again = _restore(stage, ours, rounds, None)
        _take([[{**event, "kind": "resharding"} for event in of_rank] for of_rank in again], "ckptd", raw, own)
    with Stage() as stage:
        _take(stage.ranks(hold, 2, who=_PEER, rounds=1, where=None, servers=[], daemon=0), _PEER, raw, [])
    return [_result(kind, raw[kind], max(own)) for kind in _WHEN]


def _restore(stage: Stage, ours: Deployment, rounds: int, saved: Told | None) -> Told:
    """Each in a world of its own, and with a daemon that holds nothing any more."""
    told: Told = [[] for _ in range(2)]
    for _ in range(max(rounds, 1)):
        some = stage.ranks(restore, 2, where=ours, servers=ours.pids(), daemon=ours.daemon_pid)
        if saved is not None:
            check_digests(some, check_digests(saved))
        told = [[*before, *more] for before, more in zip(told, some, strict=True)]
    return told


def _take(told: Told, who: str, raw: dict[str, dict[str, list[float]]], own: list[float]) -> None:
    for event in events(told, "held")[0]:
        raw[event["kind"]].setdefault(who, []).append(event["bytes"] / _BYTES)
        own.append(event["own"])


def _result(kind: str, raw: dict[str, list[float]], own_bytes: float) -> Result:
    budget = DaemonSettings().memory_bytes  # type: ignore[call-arg]
    notes = {"state_bytes": _BYTES, "slots": 2, "daemon_own_bytes": own_bytes, "daemon_budget_bytes": budget}
    found = Rounds({who: values[0] for who, values in raw.items()}, raw)
    result = from_rounds(f"memory_{kind}", f"memory of a node ÷ state, {_WHEN[kind]}", "states", found, 1.0, notes=notes)
    if kind == "resharding":
        return result
    bars = [at_most("of a state", max(raw["ckptd"]), _MOST)]
    if kind == "draining":
        bars.append(at_most("daemon's own ÷ its budget", own_bytes / budget, 1.0))
    return result.holding(*bars)


def hold(bucket: str, who: str, rounds: int, where: dict[str, str] | None, servers: list[int], daemon: int) -> None:
    """In each rank: save now and then, and watch what is held while a save is on its way, and after it."""
    state = sharded(_BYTES)
    before = _own(servers)
    contender: Contender = (
        Ckptd(state, where) if where is not None else Dcp(who, state, FsspecStorage(f"{bucket}/dcp", tuned=True), "process")
    )
    for number in range(WARM_UP + rounds):
        change(state)
        contender.before()
        dist.barrier()
        contender.start(number)
        peak = _watch(contender.finish, before, daemon)
        dist.barrier()
        if number >= WARM_UP:
            _say("draining", peak)
            _say("steady", _held(_pids(), before, daemon))
        dist.barrier()
    tell("digest", who="live", digest=digest(state))
    contender.close()


def restore(bucket: str, where: dict[str, str], servers: list[int], daemon: int) -> None:
    """In each rank of another world."""
    given = empty_like(sharded(_BYTES))
    before = _own(servers)
    ours = Ckptd(given, where)
    _say("restoring", _watch(lambda: ours.load(given), before, daemon))
    tell("digest", who="ckptd", digest=digest(given))
    ours.close()


def _pids() -> list[int]:
    """Everything of this stage: its trainers and their children, its daemon and its coordinator, but not the server."""
    return pids_with("BENCH_TRASH", os.environ["BENCH_TRASH"])


def _own(servers: Sequence[int]) -> int:
    """Bytes that the trainers hold before they know of ckptd."""
    dist.barrier()
    found = memory(pid for pid in _pids() if pid not in servers).pss_bytes
    dist.barrier()
    return found


def _held(watched: Sequence[int], before: int, daemon: int) -> tuple[int, int]:
    """(bytes beyond ``before``, bytes of the daemon that are no shared memory)."""
    own = memory([daemon])
    return memory(watched).pss_bytes - before, own.pss_bytes - own.shared_bytes


def _say(kind: str, held: tuple[int, int]) -> None:
    tell("held", kind=kind, bytes=held[0], own=held[1])


def _watch(work: Callable[[], object], before: int, daemon: int) -> tuple[int, int]:
    """Do it, in a thread; the most that was held meanwhile, as rank 0 saw it."""
    over = threading.Event()
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            over.set()

    watched = _pids()
    working = threading.Thread(target=do, daemon=True)
    working.start()
    samples = [(0, 0)]
    while not over.wait(_SAMPLE_SECONDS):
        if dist.get_rank() == 0:
            samples.append(_held(watched, before, daemon))
    working.join()
    if failed:
        raise failed[0]
    return max(total for total, _ in samples), max(own for _, own in samples)


if __name__ == "__main__":
    alone(measure, rounds=2)
