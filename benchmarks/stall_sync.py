"""How long `save(state, step)` blocks a trainer, beside a warm copy of the same bytes and DCP's `async_save`."""

from __future__ import annotations

from benchmarks.peers import Ckptd, Dcp, FileStorage, Memcpy, empty_like
from benchmarks.result import Result, at_most, either, from_rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, rounds_of
from benchmarks.state import sharded
from benchmarks.worker import compete, give_back

_BYTES = 1_000_000_000
_RANKS = 1


def measure(rounds: int) -> list[Result]:
    """`save` until it returns, all of it staged; nothing else is on its way meanwhile."""
    with Stage() as stage:
        where = stage.deploy()
        told = stage.ranks(save, _RANKS, where=where, scratch=stage.scratch(), rounds=rounds)
        check_digests(stage.ranks(load, _RANKS, where=where), check_digests(told))
    what = "seconds a trainer is blocked by save(), 1 GB"
    notes = {"state_bytes": _BYTES, "ranks": _RANKS, "bit_equal_after_restore": True}
    result = from_rounds("stall_sync", what, "s", rounds_of(told), "memcpy", notes=notes)
    assert result.ratio_to_limit is not None and result.ratio_to_best_peer is not None
    return [
        result.holding(
            at_most("÷ memcpy", result.ratio_to_limit, 1.15),
            either(at_most("÷ best peer", result.ratio_to_best_peer, 0.8), at_most("÷ memcpy", result.ratio_to_limit, 1.05)),
        )
    ]


def save(bucket: str, scratch: str, where: dict[str, str], rounds: int) -> None:
    """In each rank."""
    state = sharded(_BYTES)
    # their files go to tmpfs: what is timed ends before they are written, and this is the fastest way to have them written
    thread = Dcp("dcp async_save thread", state, FileStorage(f"{scratch}/thread"), "thread")
    process = Dcp("dcp async_save process", state, FileStorage(f"{scratch}/process"), "process")
    compete(state, [Memcpy(state), Ckptd(state, where), thread, process], rounds, until_durable=False)


def load(bucket: str, where: dict[str, str]) -> None:
    """In each rank of a new world."""
    state = empty_like(sharded(_BYTES))
    give_back(Ckptd(state, where), state)


if __name__ == "__main__":
    alone(measure, rounds=21)
