"""The demo's course of events: train on two nodes, kill one, go on with the other, take the first one back, compare."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptd.commit.catalog import CatalogEntry, catalog
from ckptd.commit.log import CommitLog
from ckptd.demo.cluster import Cluster, Plan
from ckptd.demo.process import DemoError, Output, Process
from ckptd.demo.verdict import Step, judge, read_steps, stretches
from ckptd.model.keys import manifest_key
from ckptd.model.manifest import decode_manifest
from ckptd.store.base import Store

_TRAIN_SECONDS = 90.0
_END_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo is asked to do. ``rejoin``: bring the killed node back."""

    store: str
    script: Path
    directory: Path
    total_steps: int
    every_steps: int
    kill_after_step: int
    rejoin: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; ``problems`` is empty when all that was promised held."""

    problems: list[str]
    steps_lost: int
    detect_seconds: float
    first_step_seconds: float
    raw_bytes: int
    stored_bytes: int
    checkpoints: int
    kept: int


Say = Callable[[str], None]


def script_arguments(options: Options) -> list[str]:
    """For examples/train_gpt.py: steps long enough that a node has time to come back."""
    return ["--steps", str(options.total_steps), "--parallel", "fsdp2", "--global-batch", "48", "--micro-batch", "8"]


def run_reference(options: Options) -> dict[int, float]:
    """The undisturbed run: one plain process without any daemon, same seed. Loss by step."""
    output = Output(options.directory)
    environment = {
        **os.environ,
        "CKPTD_SOCKET": str(options.directory / "none.sock"),
        "CKPTD_JOB": "reference",
        "PYTHONUNBUFFERED": "1",
    }
    environment = {key: value for key, value in environment.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(options.script), *script_arguments(options)]
    process = Process("reference", command, environment, output)
    try:
        code = process.wait(_END_SECONDS)
    finally:
        process.stop()
    output.wait_for("the last line of the undisturbed run", lambda: output.ended("reference"), 10.0)
    losses = {step.step: step.loss for step in read_steps(list(output))}
    if code != 0 or len(losses) != options.total_steps:
        raise DemoError(f"the undisturbed run ended with {code} after {len(losses)} steps; its log is in {options.directory}")
    return losses


class Story:
    """One run of the demo over one cluster."""

    def __init__(self, options: Options, store: Store, say: Say) -> None:
        job = f"demo-{int(time.time())}"
        arguments = script_arguments(options)
        self._plan = Plan(job, options.store, options.script, arguments)
        settings = ["--every", str(options.every_steps)]
        self._cluster = Cluster(self._plan, options.directory, settings)
        self._options = options
        self._store = store
        self._say = say

    def tell(self, reference: dict[int, float]) -> Report:
        """Let it happen. Raises DemoError when something does not come about in time."""
        cluster = self._cluster
        try:
            cluster.start_coordinator()
            for name in ("a", "b"):
                cluster.node(name).start()
            self._say("two nodes train together; each has a daemon, an agent and a worker")
            self._wait_step(2, self._options.kill_after_step)
            self._wait_commit(1)
            killed_seconds = self._kill("b")
            first = self._next_world(1, killed_seconds)
            detected, reason = self._detected(killed_seconds)
            self._say(f"detected after {detected:.2f} s: {reason}")
            self._say(
                f"one node trains on from step {first.step - 1}; first new step {first.seconds - killed_seconds:.2f} s after"
            )
            if self._options.rejoin:
                self._rejoin("b")
            self._wait_end(["a", "b"] if self._options.rejoin else ["a"])
            return self._report(reference, killed_seconds, detected, first)
        finally:
            cluster.close()

    def _steps(self) -> list[Step]:
        return read_steps(list(self._cluster.output))

    def _wait_step(self, world: int, step: int) -> None:
        self._cluster.output.wait_for(
            f"step {step} in a world of {world}",
            lambda: any(seen.world == world and seen.step >= step for seen in self._steps()),
            _TRAIN_SECONDS,
        )

    def _wait_commit(self, count: int) -> None:
        self._cluster.output.wait_for(f"{count} committed checkpoints", lambda: len(self._commits()) >= count, _TRAIN_SECONDS)

    def _commits(self) -> list[CatalogEntry]:
        """Every commit, whatever became of it, read from the log in the store."""
        return list(catalog(asyncio.run(CommitLog(self._store, self._plan.job).load())))

    def _kill(self, name: str) -> float:
        node = self._cluster.node(name)
        killed_seconds = time.monotonic()
        pids = node.kill()
        last = max(step.step for step in self._steps())
        self._say(f"node {name} killed with SIGKILL in step {last + 1}: {len(pids)} processes and its shared memory are gone")
        return killed_seconds

    def _next_world(self, world: int, after_seconds: float) -> Step:
        """Wait for the first step of a new world."""

        def first() -> Step | None:
            firsts = (part.first for part in stretches(self._steps()))
            return next((step for step in firsts if step.seconds > after_seconds and step.world == world), None)

        self._cluster.output.wait_for(f"a first step in a world of {world}", lambda: first() is not None, _TRAIN_SECONDS)
        found = first()
        assert found is not None
        return found

    def _detected(self, killed_seconds: float) -> tuple[float, str]:
        """When the coordinator first told somebody to regroup, in seconds after the kill, and why."""
        for line in self._cluster.output:
            event = line.event if line.source == "coordinator" and line.seconds > killed_seconds else {}
            if event.get("event") == "regroup":
                return line.seconds - killed_seconds, str(event.get("reason"))
        raise DemoError("the coordinator never told anybody to regroup")

    def _rejoin(self, name: str) -> None:
        self._say(f"node {name} comes back; it is taken in after the next commit")
        self._cluster.node(name).start()
        done = f"step={self._options.total_steps} "
        self._cluster.output.wait_for(
            "a first step of two nodes, or the end",
            lambda: stretches(self._steps())[-1].last.world == 2 or self._cluster.output.count("a-agent", done) > 0,
            _TRAIN_SECONDS,
        )
        last = stretches(self._steps())[-1]
        if last.last.world == 2:
            self._say(f"two nodes again from step {last.first.step} on")
        else:
            self._say(f"training ended before node {name} could be taken in; with more --steps it would have been")

    def _wait_end(self, names: Iterable[str]) -> None:
        for name in names:
            agent = self._cluster.node(name).agent
            assert agent is not None
            code = agent.wait(_END_SECONDS)
            if code != 0:
                raise DemoError(
                    f"the launcher of node {name} ended with exit code {code}; its log is in {self._options.directory}"
                )
            self._cluster.output.wait_for("the last lines", lambda name=name: self._cluster.output.ended(f"{name}-agent"), 10.0)  # type: ignore[misc]

    def _report(self, reference: dict[int, float], killed_seconds: float, detected: float, first: Step) -> Report:
        steps = self._steps()
        commits = self._commits()
        problems = judge(steps, reference, self._newest_before(steps), self._options.total_steps)
        problems += self._left_behind()
        lost = max(step.step for step in steps if step.seconds <= killed_seconds) - (first.step - 1)
        manifests = [
            decode_manifest(asyncio.run(self._store.get(manifest_key(self._plan.job, entry.manifest))))
            for entry in commits
            if entry.status == "live"
        ]
        return Report(
            problems=problems,
            steps_lost=lost,
            detect_seconds=detected,
            first_step_seconds=first.seconds - killed_seconds,
            raw_bytes=sum(manifest.raw_bytes for manifest in manifests),
            stored_bytes=sum(manifest.stored_bytes for manifest in manifests),
            checkpoints=len(commits),
            kept=len(manifests),
        )

    def _newest_before(self, steps: list[Step]) -> list[int]:
        """For each later world: the step of the newest commit that an earlier world had made, straight from the log's order."""
        state = asyncio.run(CommitLog(self._store, self._plan.job).load())
        newest = {entry.generation: entry.step for entry in catalog(state)}
        ordered = [newest[generation] for generation in sorted(newest)]
        return ordered[: len(stretches(steps)) - 1]

    def _left_behind(self) -> list[str]:
        for node in self._cluster.nodes.values():
            if node.daemon is not None:
                node.daemon.signal(signal.SIGTERM)
                node.daemon.wait(30.0)
        return [
            f"left behind on node {node.name}: {thing}" for node in self._cluster.nodes.values() for thing in node.left_over()
        ]
