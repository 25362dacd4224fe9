"""Where the figures are taken: MinIO on tmpfs, coordinators, one node's daemons, and ranks, all real processes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.link import Link, LinkedMinio
from benchmarks.rounds import Rounds, slowest
from chaos.minio import ACCESS_KEY, REGION, SECRET_KEY, MinioServer
from chaos.server import free_port
from ckptd.demo.cluster import Cluster, Plan
from ckptd.demo.process import Line, Output, Process, pids_with

_WORKER = "benchmarks.worker"
_RANKS_SECONDS = 500.0
_JOB = "bench"
_TOP = Path(__file__).resolve().parent.parent
# Snapshots are only those that `save` makes, and MinIO's memory is this machine's: only the newest commit is kept.
_SETTINGS = {
    "CKPTD_COORDINATOR__EVERY_STEPS": "1000000",
    "CKPTD_COORDINATOR__KEEP_LAST": "1",
    "CKPTD_COORDINATOR__GRACE_SECONDS": "0",
}
Told = list[list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Where:
    """How a trainer finds one deployment: for `ckptd_client.connect`."""

    job: str
    socket: str


class Deployment:
    """One coordinator and its daemons, one of each node, with settings of their own. ``on``: the daemons are another's."""

    def __init__(self, cluster: Cluster, nodes: int = 1, on: Deployment | None = None) -> None:
        self._cluster = cluster
        cluster.start_coordinator()
        if on is None:
            self._nodes = [cluster.node(f"n{number}") for number in range(nodes)]
            for node in self._nodes:
                node.start_daemon()
        else:
            self._nodes = on._nodes
        self._node = self._nodes[0]
        self.nodes = [Where(cluster.plan.job, str(node.socket)) for node in self._nodes]
        self.where = self.nodes[0]

    def logged(self, event: str) -> list[tuple[int, dict[str, object]]]:
        """(number of the node, fields) of the daemons' log lines of that event, in order."""
        numbers = {f"{node.name}-daemon": number for number, node in enumerate(self._nodes)}
        lines = [(numbers[line.source], line.event) for line in self._cluster.output if line.source in numbers]
        return [(number, fields) for number, fields in lines if fields.get("event") == event]

    @property
    def environment(self) -> dict[str, str]:
        """What a trainer of this node has in its environment."""
        return {**self._node.environment, "CKPTD_JOB": self.where.job}

    @property
    def coordinator_pid(self) -> int:
        """Its coordinator's."""
        assert self._cluster.coordinator is not None
        return self._cluster.coordinator.pid

    @property
    def daemon_pid(self) -> int:
        """Its daemon's."""
        assert self._node.daemon is not None
        return self._node.daemon.pid

    def pids(self) -> list[int]:
        """Everything on the node, and the coordinator."""
        return [*pids_with("CKPTD_SOCKET", self.where.socket), self.coordinator_pid]

    def close(self) -> None:
        """End it and lose its memory."""
        self._cluster.close()


class Stage:
    """A store and what runs on it. ``linked``: MinIO is reached through a link whose speed can be set (`benchmarks.link`)."""

    def __init__(self, *, linked: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ckptd-bench-"))
        self._output_directory = self.directory / "ranks"
        self._output_directory.mkdir()
        self.link = Link() if linked else None
        self.minio = MinioServer() if self.link is None else LinkedMinio(self.link)
        self._deployments: dict[str, Deployment] = {}
        self._worlds = 0

    def __enter__(self) -> Stage:
        try:
            self.minio.start()
            self.bucket = self.minio.make_bucket("bench")
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for deployment in self._deployments.values():
            deployment.close()
        self.minio.close()
        if self.link is not None:
            self.link.close()
        if kind is None:
            shutil.rmtree(self.directory)  # else the logs stay

    def scratch(self) -> str:
        """A new directory on tmpfs."""
        return tempfile.mkdtemp(dir=self.minio.directory)

    @property
    def environment(self) -> dict[str, str]:
        """How S3 clients reach the store."""
        return {
            "AWS_ENDPOINT_URL": self.minio.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "BENCH_TRASH": str(self.minio.directory / "data" / ".minio.sys" / "tmp" / ".trash"),
        }

    def deploy(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        name: str = "ckptd",
        store: str | None = None,
        nodes: int = 1,
        on: Deployment | None = None,
    ) -> Deployment:
        """Start a coordinator and a daemon per node. ``settings`` as in the environment: {"CKPTD_DAEMON__CODEC": "raw"}.

        Those of different ``name`` may run side by side, so that their rounds can be interleaved. ``on``: another job on the
        nodes, and on the ``store``, of that one.
        """
        job = f"{_JOB}-{name}"
        directory = self.directory / name
        directory.mkdir()
        environment = {**self.environment, **_SETTINGS, **(settings or {})}
        url = store or f"{self.bucket}/{name}"
        plan = Plan(job, url, _TOP / "benchmarks" / "worker.py", [], environment=environment)
        self._deployments[name] = Deployment(Cluster(plan, directory), nodes, on)
        return self._deployments[name]

    def ranks(self, function: Callable[..., None], count: int = 2, **arguments: object) -> Told:
        """Run ``function(**arguments)`` in ``count`` new processes, ranks of one world with gloo; what each has told.

        ``function`` is one of a module's own, its arguments go through JSON (a `Deployment` becomes its `Where`). Raises
        RuntimeError with the output of a rank that fails.
        """
        self._worlds += 1
        first = next(iter(self._deployments.values()), None)
        plain = {key: asdict(value.where) if isinstance(value, Deployment) else value for key, value in arguments.items()}
        target = f"{_module(function)}:{function.__name__}"
        command = [sys.executable, "-m", _WORKER, target, json.dumps({"bucket": self.bucket, **plain})]
        output, port = Output(self._output_directory), free_port()
        ranks = []
        for rank in range(count):
            environment = {
                **(first.environment if first is not None else _own_environment(self.environment)),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": str(_TOP),
            }
            ranks.append(Process(f"w{self._worlds}-{rank}", command, environment, output))
        try:
            return _gather(ranks, output)
        finally:
            for process in ranks:
                process.stop()


def _own_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Without a node: that of a rank that only peers work in."""
    return {**os.environ, **more, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _module(function: Callable[..., None]) -> str:
    """Its module's name, also when that is the script that runs."""
    if function.__module__ != "__main__":
        return function.__module__
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "start figures as modules: python -m benchmarks.<figure>"
    return spec.name


def _gather(ranks: Sequence[Process], output: Output) -> Told:
    def over() -> bool:
        codes = [process.code for process in ranks]
        return all(output.ended(process.name) for process in ranks) or any(code not in (None, 0) for code in codes)

    output.wait_for("the ranks' end", over, _RANKS_SECONDS)
    for process in ranks:
        if (code := process.code if process.code is not None else process.wait(30.0)) != 0:
            text = "\n".join(line.text for line in output if line.source == process.name)
            raise RuntimeError(f"{process.name} ended with {code}\n{text[-3000:]}")
    return [[json.loads(line.text) for line in output if _is_event(line, process.name)] for process in ranks]


def _is_event(line: Line, source: str) -> bool:
    return line.source == source and line.text.startswith('{"event"')


def events(told: Told, name: str) -> list[list[dict[str, Any]]]:
    """Those of one name, by rank."""
    return [[event for event in of_rank if event["event"] == name] for of_rank in told]


def rounds_of(told: Told) -> Rounds:
    """What `worker.compete` told, of the slowest rank in each round."""
    return slowest([Rounds(event["first"], event["raw"]) for (event,) in events(told, "rounds")])


def check_digests(told: Told, expected: Sequence[str] | None = None) -> list[str]:
    """Every digest of a rank is that of the state it saved last; returns those. Raises RuntimeError."""
    saved = []
    for rank, of_rank in enumerate(events(told, "digest")):
        digests = {event["who"]: event["digest"] for event in of_rank}
        if expected is not None and not digests:
            raise RuntimeError(f"nothing was restored rank={rank}")
        want = expected[rank] if expected is not None else digests["live"]
        wrong = [who for who, digest in digests.items() if digest != want]
        if wrong:
            raise RuntimeError(f"what was restored is not what was saved rank={rank} who={wrong}")
        saved.append(want)
    return saved
