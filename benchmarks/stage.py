"""Where the figures are taken: MinIO on tmpfs, a coordinator, one node's daemon, and two ranks, all real processes."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from chaos.minio import ACCESS_KEY, REGION, SECRET_KEY, MinioServer
from chaos.server import free_port
from ckptd.demo.cluster import Cluster, Plan
from ckptd.demo.process import Line, Process

WORKER = Path(__file__).with_name("worker.py")
RANKS = 2
_WORLD_SECONDS = 900.0
_JOB = "bench"


class Stage:
    """A store, and a job on it whose snapshots are only those that `save` makes."""

    def __init__(self) -> None:
        self._top = Path(tempfile.mkdtemp(prefix="ckptd-bench-"))
        directory = self._top / "logs"
        directory.mkdir()
        self._minio = MinioServer()
        self._minio.start()
        self.bucket = self._minio.make_bucket("bench")
        environment = {
            "AWS_ENDPOINT_URL": self._minio.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "BENCH_TRASH": str(self._minio.directory / "data" / ".minio.sys" / "tmp" / ".trash"),
        }
        plan = Plan(_JOB, f"{self.bucket}/ckptd", WORKER, [], environment=environment)
        self._cluster = Cluster(plan, directory, ["--every", "1000000"])
        self._worlds = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.close()
        self._minio.close()
        if kind is None:
            shutil.rmtree(self._top)  # else the logs stay

    def start_ckptd(self) -> None:
        """Start coordinator and daemon."""
        self._cluster.start_coordinator()
        self._cluster.node("a").start_daemon()

    @property
    def coordinator_pid(self) -> int:
        """0 when it doesn't run."""
        return 0 if self._cluster.coordinator is None else self._cluster.coordinator.pid

    def world(self, arguments: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Run the worker on all ranks to its end; what each rank has told."""
        self._worlds += 1
        port, output = free_port(), self._cluster.output
        ranks = []
        for rank in range(RANKS):
            environment = {
                **self._cluster.node("a").environment,
                "CKPTD_JOB": _JOB,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = [sys.executable, str(WORKER), "--bucket", self.bucket, *arguments]
            ranks.append(Process(f"w{self._worlds}-{rank}", command, environment, output))

        def over() -> bool:
            codes = [process.code for process in ranks]
            return all(output.ended(process.name) for process in ranks) or any(code not in (None, 0) for code in codes)

        output.wait_for("the ranks' end", over, _WORLD_SECONDS)
        for process in ranks:
            if (code := process.code if process.code is not None else process.wait(30.0)) != 0:
                text = "\n".join(line.text for line in output if line.source == process.name)
                raise RuntimeError(f"{process.name} ended with {code}; logs in {self._top}\n{text[-3000:]}")
        return [[json.loads(line.text) for line in output if _from(line, process.name)] for process in ranks]


def _from(line: Line, name: str) -> bool:
    return line.source == name and line.text.startswith('{"event"')


def slowest(told: Sequence[Sequence[dict[str, Any]]], first: bool) -> dict[str, list[float]]:
    """Per contender the seconds of each round, of the rank that needed longest: the others wait for it."""
    found: dict[str, dict[int, float]] = {}
    for events in told:
        for event in events:
            if event["event"] == "round" and first == (event["round"] == 0):
                rounds = found.setdefault(event["who"], {})
                rounds[event["round"]] = max(event["seconds"], rounds.get(event["round"], 0.0))
    return {who: [rounds[key] for key in sorted(rounds) if first or key > 1] for who, rounds in found.items()}


def check_digests(told: Sequence[Sequence[dict[str, Any]]], expected: Sequence[str] | None = None) -> list[str]:
    """Every digest of a rank is that of the state it saved last; returns those. Raises RuntimeError."""
    saved = []
    for rank, events in enumerate(told):
        digests = {event["who"]: event["digest"] for event in events if event["event"] == "digest"}
        want = expected[rank] if expected is not None else digests["live"]
        if not digests.keys() - {"live"}:
            raise RuntimeError(f"nothing was restored rank={rank}")
        wrong = [who for who, digest in digests.items() if digest != want]
        if wrong:
            raise RuntimeError(f"what was restored is not what was saved rank={rank} who={wrong}")
        saved.append(want)
    return saved
