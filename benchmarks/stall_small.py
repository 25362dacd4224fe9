"""`stall_sync` for 20,000 small tensors: what a save costs beyond its bytes."""

from __future__ import annotations

import torch

from benchmarks.peers import Ckptd, Dcp, FileStorage, Memcpy, empty_like
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, rounds_of
from benchmarks.state import small
from benchmarks.worker import compete, give_back


def measure(rounds: int) -> list[Result]:
    """One rank, which stores all of them; nothing else is on its way meanwhile."""
    with Stage() as stage:
        where = stage.deploy()
        told = stage.ranks(save, 1, where=where, scratch=stage.scratch(), rounds=rounds)
        check_digests(stage.ranks(load, 1, where=where), check_digests(told))
    what = "seconds a trainer is blocked by save(), 20,000 tensors, 200 MB"
    notes = {"tensors": 20_000, "state_bytes": 200_000_000, "bit_equal_after_restore": True}
    result = from_rounds("stall_small", what, "s", rounds_of(told), "memcpy", notes=notes)
    assert result.ratio_to_best_peer is not None
    return [result.holding(at_most("÷ best peer", result.ratio_to_best_peer, 0.25))]


def save(bucket: str, scratch: str, where: dict[str, str], rounds: int) -> None:
    """In the rank."""
    # By default the stager in shared memory keeps a file open for each tensor, more than a process may.
    torch.multiprocessing.set_sharing_strategy("file_system")
    state = small()
    thread = Dcp("dcp async_save thread", state, FileStorage(f"{scratch}/thread"), "thread")
    process = Dcp("dcp async_save process", state, FileStorage(f"{scratch}/process"), "process")
    compete(state, [Memcpy(state), Ckptd(state, where), thread, process], rounds, until_durable=False)


def load(bucket: str, where: dict[str, str]) -> None:
    """In a new rank."""
    state = empty_like(small())
    give_back(Ckptd(state, where), state)


if __name__ == "__main__":
    alone(measure, rounds=3)
