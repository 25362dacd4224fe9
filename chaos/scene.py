"""What a campaign disturbs, and how it is watched: a store, a cluster of nodes, the job's own words, the checker."""

from __future__ import annotations

import json
import re
import string
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.innards import wrong_contents
from chaos.invariants import Inspector, Restored
from chaos.ledger import LEDGER
from chaos.minio import MinioServer
from chaos.objects import DirectoryObjects, Objects, S3Objects
from chaos.records import unsafe
from chaos.s3proxy import S3Proxy
from chaos.tools import ROOT
from chaos.toxiproxy import Toxiproxy
from chaos.words import Words
from ckptd.demo.cluster import Cluster, Node, Plan
from ckptd.demo.process import DemoError, Process, pids_with
from ckptd.demo.verdict import Step

TRAINER = Path(__file__).with_name("trainer.py")
EVERY_STEPS = 20
PACE_SECONDS = 0.05
STAND_IN_MB = 0.25
FROZEN_MB = 4
UPLOAD_BYTES_PER_SECOND = 4 << 20  # an upload takes about as long as the steps between two: a kill often meets one
POLL_SECONDS = 0.02
LOOK_SECONDS = 5.0
JOB = "chaos"
SHIMMED = f"{ROOT / 'chaos' / 'shim'}:{ROOT}"
_REPLACED = re.compile(r"/(LATEST|LEADER|CLOCK)$|probe")


class ChaosError(DemoError):
    """Something promised did not come about."""


def until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Wait until ``condition`` holds. Raises ChaosError after ``seconds``."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise ChaosError(f"after {seconds:.0f} s still waiting for {what}")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Job:
    """What the scene's job is, by default a real torch training, one rank a node, and a snapshot every so many steps."""

    script: Path = TRAINER
    arguments: Sequence[str] = ("--pace", str(PACE_SECONDS), "--frozen-mb", str(FROZEN_MB))
    every_steps: int = EVERY_STEPS
    launcher: Sequence[str] | None = None  # what starts an agent, instead of ckptd-run
    ranks_per_node: int = 1
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"CKPTD_STORE__UPLOAD_BYTES_PER_SECOND": str(UPLOAD_BYTES_PER_SECOND)}
    )
    content_seed: int | None = None  # of a stand-in, whose bytes are known


def stand_in(seed: int, nodes: int, ranks_per_node: int, environment: Mapping[str, str]) -> Job:
    """The stand-in, with a snapshot five times a second."""
    arguments = ["--job", JOB, "--nproc", str(ranks_per_node), "--nodes", f"1:{nodes}", "--seed", str(seed)]
    arguments += ["--mb", str(STAND_IN_MB), "--pace", "0.01", "--say", "4"]
    settings = {"CKPTD_COORDINATOR__HEARTBEAT_SECONDS": "0.2", "CKPTD_COORDINATOR__LEASE_SECONDS": "1.5"}
    settings |= {"CKPTD_COORDINATOR__DEBOUNCE_SECONDS": "0.3", "CKPTD_COORDINATOR__BACKOFF_SECONDS": "0.5"}
    # several segments a node, and restore rings that fit on a small tmpfs
    settings |= {"CKPTD_DAEMON__FRAME_BYTES": "32768", "CKPTD_DAEMON__SEGMENT_BYTES": "65536"}
    settings |= {"CKPTD_COORDINATOR__FRUITLESS_GENERATIONS": "1000", "PYTHONPATH": str(ROOT)}
    script = ROOT / "chaos" / "standin.py"
    return Job(script, arguments, EVERY_STEPS, [sys.executable, "-P"], ranks_per_node, {**settings, **environment}, seed)


TORCH = Job()


class Scene:
    """One job on ``nodes`` nodes ("a", "b", …), that may be any number of them from ``min_nodes`` on."""

    def __init__(
        self,
        directory: Path,
        minio: bool,
        launcher: Sequence[str] | None = None,
        nodes: int = 2,
        min_nodes: int = 1,
        job: Job = TORCH,
        faults_seed: int | None = None,
        store: Path | None = None,
    ) -> None:
        """``faults_seed``: put a fault proxy and a toxiproxy before MinIO. ``store``: a directory store to be recorded."""
        self._launcher = launcher or job.launcher
        self.job = job
        self._names = string.ascii_lowercase[:nodes]
        self.minio = MinioServer() if minio else None
        self.toxiproxy: Toxiproxy | None = None
        self.proxy: S3Proxy | None = None
        # The cluster names its shared memory after the directory above: that one must be the only one of its name.
        directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=directory)) / "nodes"
        directory.mkdir()
        self.directory = directory
        self.store = store or directory / "store"
        self.end_file = directory / "end"
        self.ledger = directory / "ledger"
        self.ledger.mkdir()
        environment = {**job.environment, LEDGER: str(self.ledger)}
        self.records: Path | None = None
        if store is not None:
            self.records = directory / "records"
            self.records.mkdir()
            environment |= {"CHAOS_RECORDS": str(self.records), "PYTHONPATH": SHIMMED}
        objects: Objects = DirectoryObjects(self.store)
        url = str(self.store)
        if self.minio is not None:
            try:
                url, options = self._start_minio(self.minio, faults_seed)
            except BaseException:
                self._close_servers()
                raise
            objects = S3Objects(self.minio.client(), "chaos")
            environment["CKPTD_STORE__STORAGE_OPTIONS"] = json.dumps(options)
        arguments = [*job.arguments, "--end-file", str(self.end_file)]
        plan = Plan(JOB, url, job.script, arguments, min_nodes, nodes, job.ranks_per_node, environment)
        self.cluster = Cluster(plan, directory, ["--every", str(job.every_steps)])
        self.words = Words(self.cluster.output)
        self.inspector = Inspector(objects, JOB)
        if (seed := job.content_seed) is not None:
            total_bytes = int(STAND_IN_MB * (1 << 20))
            self.inspector.contents = lambda commit: wrong_contents(objects, JOB, commit, seed, total_bytes)
        self.settled_ranks = 0

    def _start_minio(self, minio: MinioServer, faults_seed: int | None) -> tuple[str, dict[str, object]]:
        minio.start()
        url = minio.make_bucket("chaos")
        if faults_seed is None:
            return url, minio.storage_options
        self.toxiproxy = Toxiproxy(minio.port)
        self.toxiproxy.start()
        self.proxy = S3Proxy(self.toxiproxy.proxied_port, "chaos", faults_seed)
        self.proxy.start()
        return url, {**minio.storage_options, "endpoint_url": self.proxy.endpoint}

    def _close_servers(self) -> None:
        for server in (self.proxy, self.toxiproxy, self.minio):
            if server is not None:
                server.close()

    @property
    def nodes(self) -> list[Node]:
        """All nodes."""
        return [self.cluster.node(name) for name in self._names]

    def start(self) -> None:
        """Everything, up to the first step of all nodes together."""
        self.cluster.start_coordinator()
        for node in self.nodes:
            self.start_node(node)
        self.wait_world(len(self.nodes), 0.0)
        self.settle()

    def start_node(self, node: Node) -> None:
        """A node's daemon and agent; returns when the daemon is ready."""
        node.start_daemon()
        self.start_agent(node)

    def start_agent(self, node: Node) -> None:
        """A node's agent alone."""
        node.start_agent(self._launcher)

    def close(self) -> None:
        """End all of it; the store goes last."""
        self.cluster.close()
        self._close_servers()

    # ---- what is seen

    def steps(self) -> list[Step]:
        """All steps that were printed."""
        self.words.refresh()
        return self.words.steps

    def furthest(self) -> int:
        """The last step that was printed."""
        return max((step.step for step in self.steps()), default=0)

    def restored(self) -> list[Restored]:
        """All ranks' words on what they restored, in the order of their coming."""
        self.words.refresh()
        return self.words.restored

    def events(self, after_seconds: float = 0.0) -> list[dict[str, object]]:
        """The coordinators' structured log lines, in the order of their coming."""
        self.words.refresh()
        return [event for seconds, event in self.words.events if seconds > after_seconds]

    def hosts_rank(self, node: Node, rank: int) -> bool:
        """Does this node run ``rank`` of the newest world?"""
        restored = self.restored()
        newest = max(one.generation for one in restored)
        said = zip(restored, self.words.living, strict=True)
        return any((one.rank, one.generation, living.source) == (rank, newest, f"{node.name}-agent") for one, living in said)

    def trainer_pid(self, node: Node) -> int:
        """The newest trainer of a node. Raises ChaosError when it is gone."""
        self.words.refresh()
        pid = next((rank.pid for rank in reversed(self.words.living) if rank.source == f"{node.name}-agent"), 0)
        if pid not in self.pids(node):
            raise ChaosError(f"the trainer of node {node.name} is gone before anybody killed it pid={pid}")
        return pid

    def pids(self, node: Node) -> list[int]:
        """All living processes of a node."""
        return pids_with("CKPTD_SOCKET", str(node.socket))

    def newest_commit(self) -> int:
        """The log number of the newest commit in the store; -1 without one."""
        newest = self.inspector.logbook.read().newest
        return -1 if newest is None else newest.seq

    # ---- what is waited for

    def wait_step(self, after_seconds: float, count: int = 1, seconds: float = 60.0) -> None:
        """``count`` new steps after a moment of the monotonic clock."""
        what = f"{count} steps after the disturbance"
        until(what, lambda: len(self.steps()) >= count and self.words.steps[-count].seconds > after_seconds, seconds)

    def wait_commit(self, after_seq: int, seconds: float = 60.0) -> int:
        """A commit beyond log number ``after_seq``; its number."""
        what = f"a commit after log record {after_seq}"
        until(what, self._attentive(lambda: self.newest_commit() > after_seq), seconds)
        return self.newest_commit()

    def wait_world(self, nodes: int, after_seconds: float, seconds: float = 90.0) -> None:
        """A step in a world of so many nodes, as the newest step."""

        def there() -> bool:
            steps = self.steps()
            whole = nodes * self.job.ranks_per_node
            return bool(steps) and steps[-1].world == whole and steps[-1].seconds > after_seconds

        until(f"a step of {nodes} nodes together", self._attentive(there), seconds)

    def _attentive(self, condition: Callable[[], bool]) -> Callable[[], bool]:
        """The condition; while it doesn't come about, all invariants are looked at now and then."""
        looked = time.monotonic()

        def there() -> bool:
            nonlocal looked
            if condition():
                return True
            if time.monotonic() - looked > LOOK_SECONDS:
                self.check()
                looked = time.monotonic()
            return False

        return there

    def settle(self) -> None:
        """From now on nobody restarts workers, until the next disturbance that may."""
        self.settled_ranks = len(self.restored())

    def check_settled(self) -> None:
        """Raises ChaosError when workers were restarted since `settle`."""
        new = self.restored()[self.settled_ranks :]
        if new:
            raise ChaosError(f"workers were restarted though none was killed: {new}")

    def problems(self, thorough: bool = False) -> list[str]:
        """All that does not hold in the store, on the disk and in the job's words."""
        self.words.refresh()
        words = self.words
        problems = [f"I5: {line}" for line in words.wrong]
        if self.records is not None:
            problems += list(unsafe(self.records))[:5]
        if self.proxy is not None:
            problems += rewritten(dict(self.proxy.stored))
        return problems + self.inspector.look(words.restored, words.offers, words.acknowledged, thorough)

    def check(self, thorough: bool = False) -> None:
        """Raises ChaosError with all problems."""
        problems = self.problems(thorough)
        if problems:
            raise ChaosError("; ".join(problems))


def needed(process: Process | None) -> Process:
    """A process that was started."""
    if process is None:
        raise ChaosError("it was never started")
    return process


def rewritten(stored: Mapping[str, set[int]]) -> list[str]:
    """Keys that were written more than once, with other bytes: only hints may be (PROTOCOLS 3)."""
    return [
        f"K1: {key} was written with {len(bodies)} different contents"
        for key, bodies in stored.items()
        if len(bodies) > 1 and not _REPLACED.search(key)
    ]
