"""Real processes of one job for tests: coordinator, daemons (one per node), and trainers started without any launcher."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptd.commit.catalog import CatalogEntry, catalog
from ckptd.commit.log import CommitLog
from ckptd.demo.cluster import Cluster, Node, Plan
from ckptd.store.open import open_store
from tests.warm import Trainer

TRAINER = Path(__file__).with_name("trainer.py")
RUN_SECONDS = 120.0


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Job:
    """One job on one store."""

    def __init__(self, directory: Path, *, every: int = 5, store: str = "", environment: dict[str, str] | None = None) -> None:
        self.name = "e2e"
        self.store = store or str(directory / "store")
        self.directory = directory
        self.environment = environment or {}
        plan = Plan(self.name, self.store, TRAINER, [], environment=self.environment)
        self.cluster = Cluster(plan, directory, ["--every", str(every)])
        self._worlds: list[World] = []

    def __enter__(self) -> Job:
        self.cluster.start_coordinator()
        return self

    def __exit__(self, *_: object) -> None:
        for world in self._worlds:  # where a test has failed they still run
            for rank in world.ranks:
                rank.signal(signal.SIGKILL)
        self.cluster.close()
        left = [thing for node in self.cluster.nodes.values() for thing in node.left_over()]
        assert not left, left

    def node(self, name: str) -> Node:
        """A node with its daemon running."""
        node = self.cluster.node(name)
        if node.daemon is None or node.daemon.code is not None:
            node.start_daemon()
        return node

    def world(self, size: int, arguments: Sequence[str], nodes: Sequence[str] = ("a",), script: Path = TRAINER) -> World:
        """Start ``size`` ranks of ``script``, dealt over ``nodes`` in order."""
        world = World(self, f"w{len(self._worlds) + 1}", size, arguments, [self.node(name) for name in nodes], script)
        self._worlds.append(world)
        return world

    def commits(self) -> list[CatalogEntry]:
        """What the log in the store says."""
        return list(catalog(asyncio.run(CommitLog(open_store(self.store), self.name).load())))

    def wait_commit(self, step: int, seconds: float = RUN_SECONDS) -> None:
        """Wait until the log has a commit of ``step``."""
        self.cluster.output.wait_for(f"a commit of step {step}", lambda: any(c.step == step for c in self.commits()), seconds)

    def wait_commit_after(self, step: int, seconds: float = RUN_SECONDS) -> None:
        """Wait until the log has a commit of a later step than ``step``."""
        self.cluster.output.wait_for(f"a commit after step {step}", lambda: any(c.step > step for c in self.commits()), seconds)


class World:
    """The trainers of one world."""

    def __init__(self, job: Job, name: str, size: int, arguments: Sequence[str], nodes: Sequence[Node], script: Path) -> None:
        self._output = job.cluster.output
        self.name = name
        port = free_port()
        self.ranks = []
        for rank in range(size):
            node = nodes[rank * len(nodes) // size]
            environment = {**node.environment, "CKPTD_JOB": job.name}
            if size > 1 or "plain" not in arguments:
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self.ranks.append(Trainer(f"{name}-{rank}", script, arguments, environment, self._output))

    def wait(self, seconds: float = RUN_SECONDS) -> list[dict[str, Any]]:
        """Wait until all ranks have ended well; the events."""
        for rank in self.ranks:
            code = rank.wait(seconds)
            self._output.wait_for(f"the output of {rank.name}", lambda name=rank.name: self._output.ended(name), 10.0)  # type: ignore[misc]
            assert code == 0, f"{rank.name} ended with {code}:\n{self.text(rank.name)}"
        return self.events()

    def text(self, name: str) -> str:
        """All that a rank has written."""
        return "\n".join(line.text for line in self._output if line.source == name)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What rank 0 has told so far."""
        found = []
        for line in self._output:
            if line.source == f"{self.name}-0" and line.text.startswith("{"):
                found.append(json.loads(line.text))
        return [event for event in found if not kind or event["event"] == kind]

    def wait_event(self, kind: str, seconds: float = RUN_SECONDS, **values: object) -> None:
        """Wait until rank 0 has told of something."""

        def seen() -> bool:
            return any(all(event.get(k) == v for k, v in values.items()) for event in self.events(kind))

        self._output.wait_for(f"{kind} {values} of {self.name}", lambda: seen() or self._dead(), seconds)
        assert seen(), "\n".join(self.text(rank.name) for rank in self.ranks)

    def _dead(self) -> bool:
        return any(rank.code not in (None, 0) for rank in self.ranks)


def by_kind(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    return [event for event in events if event["event"] == kind]


def losses(events: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Loss by step."""
    return {event["step"]: event["loss"] for event in by_kind(events, "step")}
