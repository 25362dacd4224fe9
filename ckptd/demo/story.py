"""The demo's course of events: nodes train together, some are killed, the others go on, the killed ones come back; compare."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptd.commit.fold import fold
from ckptd.commit.log import CommitLog
from ckptd.commit.state import EMPTY, Entry
from ckptd.demo.cluster import Cluster, Plan
from ckptd.demo.process import DemoError, Output, Process
from ckptd.demo.verdict import Step, judge, read_steps, stretches
from ckptd.demo.watch import ended_world
from ckptd.model.keys import log_key, manifest_key
from ckptd.model.manifest import MAX_MANIFEST_BYTES, decode_manifest
from ckptd.model.records import MAX_RECORD_BYTES, decode
from ckptd.store.base import Store, get_small

_TRAIN_SECONDS = 90.0
_END_SECONDS = 120.0
_REFERENCE_SECONDS = 240.0
_GONE_SECONDS = 30.0
_COUNTS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo is asked to do. ``pace_seconds``: the least that a step takes. ``rejoin``: bring killed nodes back."""

    store: str
    script: Path
    directory: Path
    nodes: int
    total_steps: int
    every_steps: int
    kill_after_step: int
    pace_seconds: float
    rejoin: bool

    @property
    def names(self) -> list[str]:
        """Of the nodes."""
        return list("abcde"[: self.nodes])


@dataclass(frozen=True, slots=True)
class Loss:
    """What one kill cost; seconds count from the SIGKILL."""

    nodes: str
    steps_lost: int
    detect_seconds: float
    first_step_seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; ``problems`` is empty when all that was promised held."""

    problems: list[str]
    losses: list[Loss]
    raw_bytes: int
    stored_bytes: int
    committed: int
    kept: int


Say = Callable[[str], None]


def script_arguments(options: Options) -> list[str]:
    """For examples/train_gpt.py."""
    return ["--steps", str(options.total_steps), "--parallel", "fsdp2", "--global-batch", "12", "--micro-batch", "12"]


def run_reference(options: Options) -> dict[int, float]:
    """The undisturbed run: one plain process without any daemon, same seed. Loss by step."""
    output = Output(options.directory)
    environment = {
        **os.environ,
        "CKPTD_SOCKET": str(options.directory / "none.sock"),
        "CKPTD_JOB": "reference",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment = {key: value for key, value in environment.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(options.script), *script_arguments(options)]
    process = Process("reference", command, environment, output)
    try:
        code = process.wait(_REFERENCE_SECONDS)
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
        self.job = f"demo-{int(time.time())}"
        arguments = [*script_arguments(options), "--pace", str(options.pace_seconds)]
        plan = Plan(self.job, options.store, options.script, arguments, max_nodes=options.nodes)
        self._cluster = Cluster(plan, options.directory, ["--every", str(options.every_steps)])
        self._options = options
        self._store = store
        self._say = say
        self._losses: list[Loss] = []

    @property
    def output(self) -> Output:
        """All that the cluster says."""
        return self._cluster.output

    def tell(self, reference: dict[int, float]) -> Report:
        """Let it happen. Raises DemoError when something does not come about in time."""
        names, rejoin = self._options.names, self._options.rejoin
        try:
            self._cluster.start_coordinator()
            for name in names:
                self._cluster.node(name).start()
            self._say(f"{_COUNTS[len(names)]} nodes train together; each has a daemon, an agent and a worker")
            self._wait_step(len(names), self._options.kill_after_step)
            left = self._lose([names[1]])
            if rejoin and self._back([names[1]]) and len(names) > 2:
                left = self._lose(names[:-1])
                self._back(names[:-1])
            self._wait_end(names if rejoin else left)
            return self._report(reference)
        finally:
            self._cluster.close()

    # ---- what happens

    def _lose(self, lost: Sequence[str]) -> list[str]:
        """Kill these nodes once there is a commit of their world; the names of those left, which train on."""
        left = [name for name in self._options.names if name not in lost]
        begun = stretches(self._steps())[-1].first.seconds
        self.output.wait_for("a commit of this world", lambda: self._committed_since(begun), _TRAIN_SECONDS)
        killed = time.monotonic()
        pids = sum(len(self._cluster.node(name).kill()) for name in lost)
        last = [step.step for step in self._steps() if step.seconds <= killed][-1]
        who = f"node {lost[0]}" if len(lost) == 1 else f"nodes {' and '.join(lost)}"
        self._say(f"{who} killed with SIGKILL in step {last + 1}: {pids} processes and all shared memory there are gone")
        first = self._next_world(len(left), killed)
        detected, reason = self._detected(killed)
        self._say(f"detected after {detected:.2f} s: {reason}")
        took = first.seconds - killed
        went_on = "one node trains" if len(left) == 1 else f"{_COUNTS[len(left)]} nodes train"
        self._say(f"{went_on} on from step {first.step - 1}; first new step {took:.2f} s after")
        self._losses.append(Loss(" and ".join(lost), last - (first.step - 1), detected, took))
        return left

    def _back(self, names: Sequence[str]) -> bool:
        """Start these nodes again; whether they are all taken in before the training ends."""
        all_nodes, who = self._options.nodes, " and ".join(names)
        self._say(f"{who} {'comes' if len(names) == 1 else 'come'} back, to be taken in after the next commit")
        for name in names:
            self._cluster.node(name).start()
        self.output.wait_for(
            f"a first step of {all_nodes} nodes, or the end",
            lambda: (steps := self._steps())[-1].world == all_nodes or steps[-1].step == self._options.total_steps,
            _TRAIN_SECONDS,
        )
        last = stretches(self._steps())[-1]
        if last.last.world == all_nodes:
            self._say(f"{_COUNTS[all_nodes]} nodes again from step {last.first.step} on")
            return True
        self._say(f"training ended before {who} could be taken in; with more --steps there would have been time")
        return False

    # ---- what is seen

    def _steps(self) -> list[Step]:
        return read_steps(list(self.output))

    def _wait_step(self, world: int, step: int) -> None:
        self.output.wait_for(
            f"step {step} in a world of {world}",
            lambda: any(seen.world == world and seen.step >= step for seen in self._steps()),
            _TRAIN_SECONDS,
        )

    def _committed_since(self, seconds: float) -> bool:
        settled = (line.event for line in self.output if line.source == "coordinator" and line.seconds > seconds)
        return any(event.get("event") == "attempt settled" and event.get("seq") is not None for event in settled)

    def _next_world(self, world: int, after_seconds: float) -> Step:
        """Wait for the first step of a new world."""

        def first() -> Step | None:
            firsts = (part.first for part in stretches(self._steps()))
            return next((step for step in firsts if step.seconds > after_seconds and step.world == world), None)

        self.output.wait_for(f"a first step in a world of {world}", lambda: first() is not None, _TRAIN_SECONDS)
        found = first()
        assert found is not None
        return found

    def _detected(self, killed_seconds: float) -> tuple[float, str]:
        """When the coordinator first ended the broken world, in seconds after the kill, and why."""
        found = ended_world(self.output, killed_seconds)
        if found is None:
            raise DemoError("the coordinator never ended the broken world")
        seconds, reason = found
        return seconds - killed_seconds, reason.partition(" (")[0]  # without torch's own words on it

    def _wait_end(self, names: Sequence[str]) -> None:
        for name in names:
            agent = self._cluster.node(name).agent
            assert agent is not None
            code = agent.wait(_END_SECONDS)
            if code != 0:
                raise DemoError(
                    f"the launcher of node {name} ended with exit code {code}; its log is in {self._options.directory}"
                )
            self.output.wait_for("the last lines", lambda name=name: self.output.ended(f"{name}-agent"), 10.0)  # type: ignore[misc]

    # ---- what it was worth

    def _report(self, reference: dict[int, float]) -> Report:
        steps, (commits, live) = self._steps(), asyncio.run(_read_commits(self._store, self.job))
        problems = judge(steps, reference, _newest_before(commits, steps), self._options.total_steps)
        problems += self._left_behind()
        keys = [manifest_key(self.job, entry.manifest) for entry in live]
        manifests = [decode_manifest(asyncio.run(get_small(self._store, key, MAX_MANIFEST_BYTES))) for key in keys]
        return Report(
            problems=problems,
            losses=self._losses,
            raw_bytes=sum(manifest.raw_bytes for manifest in manifests),
            stored_bytes=sum(manifest.stored_bytes for manifest in manifests),
            committed=len(commits),
            kept=len(live),
        )

    def _left_behind(self) -> list[str]:
        for node in self._cluster.nodes.values():
            if node.daemon is not None:
                node.daemon.signal(signal.SIGTERM)
                node.daemon.wait(30.0)
        # An agent that came too late ends at once, and its fork server when it has loaded torch and sees that it is alone.
        deadline = time.monotonic() + _GONE_SECONDS
        while left := [(node, thing) for node in self._cluster.nodes.values() for thing in node.left_over()]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return [f"left behind on node {node.name}: {thing}" for node, thing in left]


async def _read_commits(store: Store, job: str) -> tuple[list[Entry], list[Entry]]:
    """(every commit that counted, those that are live), from the records themselves: the folded state forgets."""
    state, commits = EMPTY, []
    for seq in range((await CommitLog(store, job).load()).tail + 1):
        state, _ = fold(state, decode(seq, await get_small(store, log_key(job, seq), MAX_RECORD_BYTES)))
        if seq in state.commits:
            commits.append(state.commits[seq])
    return commits, [entry for entry in state.commits.values() if entry.live]


def _newest_before(commits: Sequence[Entry], steps: list[Step]) -> list[int]:
    """For each later world: the step of the newest commit that an earlier world had made, straight from the log's order."""
    newest = {entry.generation: entry.attempt.snapshot.step for entry in commits}
    ordered = [newest[generation] for generation in sorted(newest)]
    return ordered[: len(stretches(steps)) - 1]
