"""A cluster on one machine: a coordinator, and nodes of a daemon, an agent and its workers each."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptd.demo.process import DemoError, Output, Process, kill_all, pids_with
from ckptd.model.canonical import digest

_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs: a job on a store, a script with its arguments, and how many nodes it may have."""

    job: str
    store: str
    script: Path
    arguments: Sequence[str]
    min_nodes: int = 1
    max_nodes: int = 2
    ranks_per_node: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


def memory_prefix(directory: Path) -> str:
    """How the names in /dev/shm of a cluster in this directory begin: two clusters never share memory."""
    return f"ckptd-{digest(str(directory.resolve()).encode())[:12]}-"


def executable() -> list[str]:
    """How to start ckptd: $CKPTD_EXECUTABLE (a command line, as for `ckptd-run`), else this very installation."""
    named = os.environ.get("CKPTD_EXECUTABLE")
    return shlex.split(named) if named else [sys.executable, "-m", "ckptd"]


def _start(name: str, command: Sequence[str], environment: Mapping[str, str], output: Output, ready: str) -> Process:
    """Start a server and wait until it says that it is ready. Raises DemoError when it ends instead."""
    before = len(output)
    process = Process(name, command, environment, output)

    def answers() -> bool:
        return any(line.source == name and ready in line.text for line in output.since(before))

    output.wait_for(name, lambda: answers() or process.code is not None, _START_SECONDS)
    if process.code is not None:
        raise DemoError(f"{name} ended with exit code {process.code}; its log says why")
    return process


class Node:
    """One node: everything on it carries its CKPTD_SOCKET in the environment, so all of it can be found and killed."""

    def __init__(self, name: str, directory: Path, plan: Plan, output: Output) -> None:
        self.name = name
        self._plan = plan
        self._output = output
        self.arena = Path("/dev/shm") / f"{memory_prefix(directory)}{name}"
        self.socket = directory / f"{name}.sock"
        self.environment = {
            **os.environ,
            **plan.environment,
            "CKPTD_SOCKET": str(self.socket),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.daemon: Process | None = None
        self.agent: Process | None = None

    def start_daemon(self) -> None:
        """Start the daemon and wait until it listens."""
        command = [*executable(), "daemon", "--store", self._plan.store, "--node", self.name]
        command += ["--arena-directory", str(self.arena)]
        self.daemon = _start(f"{self.name}-daemon", command, self.environment, self._output, "ckptd daemon ready")

    def start_agent(self, launcher: Sequence[str] | None = None) -> None:
        """Start the launcher with the script."""
        plan = self._plan
        launcher = launcher or [
            str(Path(sys.executable).with_name("ckptd-run")), "--nnodes", f"{plan.min_nodes}:{plan.max_nodes}",
            "--nproc-per-node", str(plan.ranks_per_node), "--job", plan.job, "--local-addr", "127.0.0.1",
        ]  # fmt: skip
        self.agent = Process(
            f"{self.name}-agent", [*launcher, str(plan.script), *plan.arguments], self.environment, self._output
        )

    def start(self) -> None:
        """Daemon and launcher."""
        self.start_daemon()
        self.start_agent()

    def kill(self) -> list[int]:
        """SIGKILL everything on the node and lose its shared memory, as when the power goes. Returns the pids."""
        killed = kill_all("CKPTD_SOCKET", str(self.socket))
        shutil.rmtree(self.arena, ignore_errors=True)
        return killed

    def stop(self) -> None:
        """End it in order."""
        for process in (self.agent, self.daemon):
            if process is not None:
                process.stop()

    def left_over(self) -> list[str]:
        """Processes and shared memory that should be gone."""
        pids = [f"process {pid}" for pid in pids_with("CKPTD_SOCKET", str(self.socket))]
        return pids + [str(path) for path in self.arena.glob("*.arena")]


class Cluster:
    """The coordinator and the nodes of one job, in one directory of sockets and logs."""

    def __init__(self, plan: Plan, directory: Path, coordinator_options: Sequence[str] = ()) -> None:
        self.plan = plan
        self.directory = directory
        self.output = Output(directory)
        self._options = list(coordinator_options)
        self.coordinator: Process | None = None
        self.nodes: dict[str, Node] = {}

    def start_coordinator(self) -> None:
        """Start the coordinator and wait until it holds the office."""
        command = [*executable(), "coordinator", "--job", self.plan.job, "--store", self.plan.store, *self._options]
        environment = {**os.environ, **self.plan.environment}
        self.coordinator = _start("coordinator", command, environment, self.output, "ckptd coordinator ready")

    def node(self, name: str) -> Node:
        """A node by name, made when it is new."""
        if name not in self.nodes:
            self.nodes[name] = Node(name, self.directory, self.plan, self.output)
        return self.nodes[name]

    def close(self) -> None:
        """End all of it, in order where that works, by SIGKILL where it doesn't."""
        for node in self.nodes.values():
            node.stop()
            node.kill()
        if self.coordinator is not None:
            self.coordinator.stop()
