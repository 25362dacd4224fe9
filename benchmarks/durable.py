"""How fast a save becomes durable on MinIO, beside a bare PUT of the same bytes and DCP's `save`."""

from __future__ import annotations

from benchmarks.bare import BarePut
from benchmarks.peers import Ckptd, Dcp, FsspecStorage, S3TorchStorage, empty_like
from benchmarks.result import Result, from_rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, check_digests, rounds_of
from benchmarks.state import sharded
from benchmarks.worker import compete, give_back

_BYTES = 1_000_000_000
_RANKS = 2


def measure(rounds: int) -> list[Result]:
    """From the call of `save` to the handle's `durable` (the commit is in the log), to MinIO on the same cores."""
    with Stage() as stage:
        where = stage.deploy({"CKPTD_DAEMON__CODEC": "raw"})
        told = stage.ranks(save, _RANKS, where=where, rounds=rounds)
        check_digests(stage.ranks(load, _RANKS, where=where), check_digests(told))
    found = rounds_of(told).map(lambda seconds: _BYTES / 1e9 / seconds)
    notes = {"state_bytes": _BYTES, "ranks": _RANKS, "bit_equal_after_restore": True}
    what = "raw GB/s from save() to durable, the slower of two ranks"
    return [from_rounds("durable", what, "GB/s", found, "bare put", better="higher", notes=notes)]


def save(bucket: str, where: dict[str, str], rounds: int) -> None:
    """In each rank."""
    state = sharded(_BYTES)
    contenders = [
        BarePut(state, bucket),
        Ckptd(state, where),
        Dcp("dcp s3fs", state, FsspecStorage(f"{bucket}/dcp", tuned=False)),
        Dcp("dcp s3fs tuned", state, FsspecStorage(f"{bucket}/tuned", tuned=True)),
        Dcp("s3torchconnector", state, S3TorchStorage(f"{bucket}/s3torch")),
    ]
    compete(state, contenders, rounds, until_durable=True)


def load(bucket: str, where: dict[str, str]) -> None:
    """In each rank of a new world."""
    state = empty_like(sharded(_BYTES))
    give_back(Ckptd(state, where), state)


if __name__ == "__main__":
    alone(measure, rounds=3)
