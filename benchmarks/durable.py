"""How fast a save becomes durable on MinIO, beside the store library alone, DCP and s3torchconnector; what encoding is worth.

Over a link without a limit (MinIO on the same cores) and over links of 150 and 50 MB/s: the default, ``codec = "auto"``, has to
choose right there between sending all bytes and encoding them first. Beside the peers there is one rank: torch has one process
that writes then. The choice is measured with two.
"""

from __future__ import annotations

import statistics

import torch.distributed as dist

from benchmarks.bare import BarePut
from benchmarks.peers import Ckptd, Contender, Dcp, FsspecStorage, S3TorchStorage, State, empty_like
from benchmarks.processes import cpu_seconds
from benchmarks.result import Result, at_least, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.run import alone
from benchmarks.stage import Stage, Told, check_digests, events, rounds_of
from benchmarks.state import sharded
from benchmarks.worker import compete, give_back, tell

_BYTES, _AUTO_BYTES = 1_000_000_000, 500_000_000
_LINKS = {150_000_000: 200_000_000, 50_000_000: 100_000_000}  # bytes per second: bytes of state
_CODECS = ("raw", "planes", "auto")
_RANKS, _PEERS_RANKS = 2, 1


def measure(rounds: int) -> list[Result]:
    """From the call of `save` to the handle's `durable` (the commit is in the log); the slowest rank counts."""
    with Stage() as stage:
        results = [_beside_peers(stage, 3 * rounds)]
    with Stage() as stage:
        results.append(_choosing(stage, "durable_auto", _AUTO_BYTES, 5 * rounds))
    with Stage(linked=True) as stage:
        for link, total_bytes in _LINKS.items():
            results.append(_choosing(stage, f"durable_{link // 1_000_000}", total_bytes, rounds, link))
    return results


def _beside_peers(stage: Stage, rounds: int) -> Result:
    raw = stage.deploy({"CKPTD_DAEMON__CODEC": "raw"})
    told = stage.ranks(
        save, _PEERS_RANKS, total_bytes=_BYTES, pids={"ckptd": raw.daemon_pid}, peers=True, rounds=rounds, ckptd=raw
    )
    check_digests(stage.ranks(load, _PEERS_RANKS, total_bytes=_BYTES, where=raw), check_digests(told))
    result = _result("durable", "codec raw", _BYTES, rounds_of(told), told)
    assert result.ratio_to_limit is not None
    return result.holding(
        at_least("÷ bare put", result.ratio_to_limit, 0.9),
        at_least("÷ dcp s3fs", result.ckptd / result.peers["dcp s3fs"], 3.0),
        at_least("÷ s3torchconnector", result.ckptd / result.peers["s3torchconnector"], 1.1),
    )


def _choosing(stage: Stage, figure: str, total_bytes: int, rounds: int, link: float | None = None) -> Result:
    deployed = {codec: stage.deploy({"CKPTD_DAEMON__CODEC": codec}, name=f"{codec}-{figure}") for codec in _CODECS}
    pids = {codec: deployment.daemon_pid for codec, deployment in deployed.items()}
    if stage.link is not None:
        stage.link.cap(link)
    told = stage.ranks(save, _RANKS, total_bytes=total_bytes, pids=pids, peers=False, rounds=rounds, **deployed)
    if stage.link is not None:
        stage.link.cap(None)
    expected = check_digests(told)
    for codec in ("planes", "auto"):
        check_digests(stage.ranks(load, _RANKS, total_bytes=total_bytes, where=deployed[codec]), expected)
    found = rounds_of(told)
    named = {"auto": "ckptd", "raw": "ckptd raw", "planes": "ckptd planes"}
    found = Rounds(*({named.get(name, name): value for name, value in side.items()} for side in (found.first, found.raw)))
    how = "no limit" if link is None else f"{link / 1e6:.0f} MB/s"
    result = _result(figure, f"codec auto, link: {how}", total_bytes, found, told)
    assert result.limit is not None
    raw, planes = result.peers["ckptd raw"], result.peers["ckptd planes"]
    bars = [at_least("auto ÷ the better of raw and planes", result.ckptd / max(raw, planes), 0.95)]
    if figure == "durable_150":
        bars.append(at_least("planes ÷ bare put", planes / result.limit, 1.1))
    return result.holding(*bars)


def _result(figure: str, how: str, total_bytes: int, seconds: Rounds, told: Told) -> Result:
    notes = {
        "state_bytes": total_bytes,
        "ranks": len(told),
        "bit_equal_after_restore": True,
        "daemon_core_seconds_per_gb": {event["who"]: event["per_gb"] for event in events(told, "cores")[0]},
    }
    speeds = seconds.map(lambda value: total_bytes / 1e9 / value)
    what = f"raw GB/s from save() to durable, {how}"
    return from_rounds(figure, what, "GB/s", speeds, "bare put", better="higher", notes=notes)


class Costed(Ckptd):
    """Notes what its daemon uses of the CPU, from each save to its end."""

    def __init__(self, state: State, where: dict[str, str], name: str, pid: int) -> None:
        super().__init__(state, where, name)
        self._pid, self._before, self.core_seconds = pid, -1.0, list[float]()

    def start(self, number: int) -> None:
        self._before = cpu_seconds([self._pid])
        super().start(number)

    def finish(self) -> None:
        super().finish()
        if self._before >= 0:
            self.core_seconds.append(cpu_seconds([self._pid]) - self._before)
            self._before = -1.0


def save(bucket: str, total_bytes: int, pids: dict[str, int], peers: bool, rounds: int, **where: dict[str, str]) -> None:
    """In each rank."""
    state = sharded(total_bytes)
    ours = [Costed(state, place, name, pids[name]) for name, place in where.items()]
    contenders: list[Contender] = [BarePut(state, bucket), *ours]
    if peers:
        contenders += [
            Dcp("dcp s3fs", state, FsspecStorage(f"{bucket}/dcp", tuned=False)),
            Dcp("s3torchconnector", state, S3TorchStorage(f"{bucket}/s3torch")),
        ]
    compete(state, contenders, rounds, until_durable=True)
    if dist.get_rank() == 0:
        for one in ours:
            tell("cores", who=one.name, per_gb=statistics.median(one.core_seconds) / total_bytes * 1e9)


def load(bucket: str, total_bytes: int, where: dict[str, str]) -> None:
    """In each rank of a new world."""
    state = empty_like(sharded(total_bytes))
    give_back(Ckptd(state, where), state)


if __name__ == "__main__":
    alone(measure, rounds=3)
