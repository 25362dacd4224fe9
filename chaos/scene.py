"""What a campaign disturbs, and how it is watched: a store, a cluster of nodes, the job's own words, the checker."""

from __future__ import annotations

import json
import re
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.invariants import Inspector, Offer, Restored
from chaos.ledger import LEDGER
from chaos.minio import MinioServer
from chaos.objects import DirectoryObjects, Objects, S3Objects
from ckptd.demo.cluster import Cluster, Node, Plan
from ckptd.demo.process import DemoError, Process, pids_with
from ckptd.demo.verdict import Step, read_steps

TRAINER = Path(__file__).with_name("trainer.py")
EVERY_STEPS = 20
PACE_SECONDS = 0.05
FROZEN_MB = 4
UPLOAD_BYTES_PER_SECOND = 4 << 20  # an upload takes about as long as the steps between two: a kill often meets one
POLL_SECONDS = 0.02
JOB = "chaos"

_RESTORED = re.compile(r"restored rank=(\d+) step=(\d+) world=(\d+) generation=(\d+)-(\d+) pid=(\d+)")
_OFFER = re.compile(r"NameRestore\(target=Target\(seq=(\d+), step=(\d+), manifest='(\w+)'\), loss=.*\)")


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
    """What the scene's job is, by default a real torch training, and a snapshot every so many steps."""

    script: Path = TRAINER
    arguments: Sequence[str] = ("--pace", str(PACE_SECONDS), "--frozen-mb", str(FROZEN_MB))
    every_steps: int = EVERY_STEPS


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
    ) -> None:
        """``launcher``: what starts an agent, instead of ckptd-run."""
        self._launcher = launcher
        self.job = job
        self._names = string.ascii_lowercase[:nodes]
        self.minio = MinioServer() if minio else None
        # The cluster names its shared memory after the directory above: that one must be the only one of its name.
        directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=directory)) / "nodes"
        directory.mkdir()
        self.directory = directory
        self.end_file = directory / "end"
        self.ledger = directory / "ledger"
        self.ledger.mkdir()
        environment = {"CKPTD_STORE__UPLOAD_BYTES_PER_SECOND": str(UPLOAD_BYTES_PER_SECOND), LEDGER: str(self.ledger)}
        objects: Objects
        if self.minio is None:
            store = str(directory / "store")
            objects = DirectoryObjects(directory / "store")
        else:
            try:
                self.minio.start()
                store = self.minio.make_bucket("chaos")
            except BaseException:
                self.minio.close()
                raise
            objects = S3Objects(self.minio.client(), "chaos")
            environment["CKPTD_STORE__STORAGE_OPTIONS"] = json.dumps(self.minio.storage_options)
        arguments = [*job.arguments, "--end-file", str(self.end_file)]
        plan = Plan(JOB, store, job.script, arguments, min_nodes, nodes, environment=environment)
        self.cluster = Cluster(plan, directory, ["--every", str(job.every_steps)])
        self.inspector = Inspector(objects, JOB)
        self.settled_ranks = 0
        self._read_lines = 0
        self._steps: list[Step] = []
        self._words: list[tuple[str, re.Match[str]]] = []  # (who, what it says that it restored)
        self._events: list[tuple[float, dict[str, object]]] = []

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
        node.start_agent(self._launcher)

    def close(self) -> None:
        """End all of it; the store goes last."""
        self.cluster.close()
        if self.minio is not None:
            self.minio.close()

    # ---- what is seen

    def _read(self) -> None:
        """Read on in what was printed; a long campaign prints too much to read all of it at every look."""
        lines = self.cluster.output.since(self._read_lines)
        self._read_lines += len(lines)
        self._steps += read_steps(lines)
        for line in lines:
            if line.source == "coordinator":
                if event := line.event:
                    self._events.append((line.seconds, event))
            elif word := _RESTORED.search(line.text):
                self._words.append((line.source, word))

    def steps(self) -> list[Step]:
        """All steps that were printed."""
        self._read()
        return self._steps

    def furthest(self) -> int:
        """The last step that was printed."""
        return max((step.step for step in self.steps()), default=0)

    def restored(self) -> list[Restored]:
        """All ranks' words on what they restored, in the order of their coming."""
        return [Restored(int(f[1]), int(f[2]), int(f[3]), (int(f[4]), int(f[5]))) for f in self._said()]

    def offers(self) -> list[Offer]:
        """What coordinators named to restore."""
        found = (_OFFER.fullmatch(str(event.get("detail"))) for event in self.events())
        return [Offer(int(f[1]), int(f[2]), f[3]) for f in found if f]

    def events(self, after_seconds: float = 0.0) -> list[dict[str, object]]:
        """The coordinators' structured log lines, in the order of their coming."""
        self._read()
        return [event for seconds, event in self._events if seconds > after_seconds]

    def trainer_pid(self, node: Node) -> int:
        """The newest trainer of a node. Raises ChaosError when it is gone."""
        pid = next((int(f[6]) for f in reversed(self._said(f"{node.name}-agent"))), 0)
        if pid not in self.pids(node):
            raise ChaosError(f"the trainer of node {node.name} is gone before anybody killed it pid={pid}")
        return pid

    def hosts_rank(self, node: Node, rank: int) -> bool:
        """Does this node run ``rank`` of the newest world?"""
        found = self._said(f"{node.name}-agent")
        newest = max((int(f[4]), int(f[5])) for f in self._said())
        return any(int(f[1]) == rank and (int(f[4]), int(f[5])) == newest for f in found)

    def pids(self, node: Node) -> list[int]:
        """All living processes of a node."""
        return pids_with("CKPTD_SOCKET", str(node.socket))

    def _said(self, source: str = "") -> list[re.Match[str]]:
        self._read()
        return [word for who, word in self._words if source in (who, "")]

    def newest_commit(self) -> int:
        """The log number of the newest commit in the store; -1 without one."""
        newest = self.inspector.logbook.read().newest
        return -1 if newest is None else newest.seq

    # ---- what is waited for

    def wait_step(self, after_seconds: float, count: int = 1, seconds: float = 60.0) -> None:
        """``count`` new steps after a moment of the monotonic clock."""
        what = f"{count} steps after the disturbance"
        until(what, lambda: sum(step.seconds > after_seconds for step in self.steps()) >= count, seconds)

    def wait_commit(self, after_seq: int, seconds: float = 60.0) -> int:
        """A commit beyond log number ``after_seq``; its number."""
        until(f"a commit after log record {after_seq}", lambda: self.newest_commit() > after_seq, seconds)
        return self.newest_commit()

    def wait_world(self, nodes: int, after_seconds: float, seconds: float = 90.0) -> None:
        """A step in a world of so many nodes, as the newest step."""

        def there() -> bool:
            steps = self.steps()
            return bool(steps) and steps[-1].world == nodes and steps[-1].seconds > after_seconds

        until(f"a step of {nodes} nodes together", there, seconds)

    def settle(self) -> None:
        """From now on nobody restarts workers, until the next disturbance that may."""
        self.settled_ranks = len(self.restored())

    def check_settled(self) -> None:
        """Raises ChaosError when workers were restarted since `settle`."""
        new = self.restored()[self.settled_ranks :]
        if new:
            raise ChaosError(f"workers were restarted though none was killed: {new}")

    def check(self, thorough: bool = False) -> None:
        """Raises ChaosError with all that does not hold in the store and in the job's words."""
        problems = self.inspector.look(self.restored(), self.offers(), thorough)
        if problems:
            raise ChaosError("; ".join(problems))


def needed(process: Process | None) -> Process:
    """A process that was started."""
    if process is None:
        raise ChaosError("it was never started")
    return process
