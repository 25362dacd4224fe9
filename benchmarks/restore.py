"""How long a restore takes from MinIO into the tensors, beside the store library alone, DCP and s3torchconnector.

Stored raw with the link unthrottled (MinIO on the same cores), and encoded over a link of 150 MB/s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch.distributed as dist

from benchmarks.bare import BareGet
from benchmarks.peers import Ckptd, Dcp, FsspecStorage, S3TorchStorage, State, empty_like, local_of
from benchmarks.result import Bar, Result, at_most, from_rounds
from benchmarks.rounds import Rounds, interleave
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, rounds_of
from benchmarks.state import sharded
from benchmarks.worker import digest, tell

_BYTES, _LINKED_BYTES = 1_000_000_000, 400_000_000
_LINK = 150_000_000
_RANKS = 2


def measure(rounds: int) -> list[Result]:
    """`load(state)` until every rank has its part, the slower of two ranks; each round in a new world."""
    with Stage() as stage:
        found = _restored(stage, "raw", _BYTES, rounds, None)
    result = _result("restore", "codec raw", _BYTES, found)
    bars = [
        _bar(result, "bare get", 1.35),
        at_most("÷ dcp s3fs", result.ckptd / result.peers["dcp s3fs"], 0.5),
        at_most("÷ s3torchconnector", result.ckptd / result.peers["s3torchconnector"], 1.0),
    ]
    with Stage(linked=True) as stage:
        found = _restored(stage, "planes", _LINKED_BYTES, rounds, _LINK)
    linked = _result("restore_150", "codec planes, link: 150 MB/s", _LINKED_BYTES, found)
    return [result.holding(*bars), linked.holding(_bar(linked, "bare get", 0.95))]


def _bar(result: Result, limit: str, bound: float) -> Bar:
    assert result.ratio_to_limit is not None
    return at_most(f"÷ {limit}", result.ratio_to_limit, bound)


def _result(figure: str, how: str, total_bytes: int, found: Rounds) -> Result:
    notes = {"state_bytes": total_bytes, "ranks": _RANKS, "bit_equal_after_restore": True}
    what = f"seconds from MinIO into the tensors, {how}, the slower of two ranks"
    return from_rounds(figure, what, "s", found, "bare get", notes=notes)


def _restored(stage: Stage, codec: str, total_bytes: int, rounds: int, link: float | None) -> Rounds:
    where = stage.deploy({"CKPTD_DAEMON__CODEC": codec})
    saved = check_digests(stage.ranks(save, _RANKS, where=where, total_bytes=total_bytes))
    if stage.link is not None:
        stage.link.cap(link)
    told = stage.ranks(load, _RANKS, where=where, total_bytes=total_bytes, rounds=rounds, peers=link is None)
    check_digests(told, saved)
    return rounds_of(told)


def save(bucket: str, where: dict[str, str], total_bytes: int) -> None:
    """In each rank."""
    state = sharded(total_bytes)
    ours = Ckptd(state, where)
    ours.start(0)
    ours.finish()
    tell("digest", who="live", digest=digest(state))
    ours.close()


def load(bucket: str, where: dict[str, str], total_bytes: int, rounds: int, peers: bool) -> None:
    """In each rank of another world. What a load fills is warm, as a model's parameters are, and holds other bytes before."""
    state = sharded(total_bytes)
    bare = BareGet(state, bucket)
    given = empty_like(state)
    loads: dict[str, Callable[[int], float]] = {
        "bare get": lambda _: _seconds(bare.get),
        "ckptd": partial(_new_world, given, where),
    }
    others = {"dcp s3fs": FsspecStorage(f"{bucket}/dcp", tuned=False), "s3torchconnector": S3TorchStorage(f"{bucket}/s3torch")}
    for name, storage in others.items() if peers else ():
        peer = Dcp(name, state, storage)
        peer.start(0)
        loads[name] = partial(_filled, peer, given)
    right = digest(state)
    checked = {name: partial(_checked, do, given, right, name) for name, do in loads.items()}
    found = interleave(checked, rounds, warm_up=1, between=partial(_spoil, given))
    bare.check()
    tell("rounds", first=found.first, raw=found.raw)
    tell("digest", who="ckptd", digest=right)


def _new_world(given: State, where: Mapping[str, str], number: int) -> float:
    """A world is known by its master's address."""
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    ours = Ckptd(given, dict(where))
    seconds = _filled(ours, given, number)
    ours.close()
    return seconds


def _filled(contender: Ckptd | Dcp, given: State, _: int) -> float:
    return _seconds(lambda: contender.load(given))


def _seconds(do: Callable[[], object]) -> float:
    """All ranks begin at once."""
    dist.barrier()
    begun = time.perf_counter()
    do()
    seconds = time.perf_counter() - begun
    dist.barrier()
    return seconds


def _checked(do: Callable[[int], float], given: State, right: str, name: str, number: int) -> float:
    """Not timed: every byte, after each load. Raises RuntimeError."""
    seconds = do(number)
    if name != "bare get" and digest(given) != right:
        raise RuntimeError(f"what was restored is not what was saved who={name}")
    return seconds


def _spoil(given: State) -> None:
    for tensor in given.values():
        local_of(tensor).zero_()


if __name__ == "__main__":
    alone(measure, rounds=11)
