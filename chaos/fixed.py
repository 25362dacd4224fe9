"""Kills in a world that always comes back to the same size: the weights at the end are those of a run that nobody disturbed.

`min_nodes` is `max_nodes`, so a lost node is waited for. The kills don't wait until all is well again: some come while the job
recovers from the one before.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from chaos.campaign import END_SECONDS, Say
from chaos.ledger import judge, read, surviving
from chaos.scene import ChaosError, Job, Scene, needed, until
from chaos.server import free_port
from chaos.victims import GONE_SECONDS, agent, daemon
from ckptd.demo.cluster import Node
from ckptd.demo.process import Line, Output, Process
from ckptd.demo.verdict import read_steps

TRAINER: Final = Path(__file__).with_name("exact_trainer.py")
EVERY_STEPS: Final = 8
PACE_SECONDS: Final = 0.08
VICTIMS: Final = ("trainer",) * 4 + ("daemon",) * 2 + ("coordinator",) * 2 + ("agent", "node")  # the last two cost most time
SOON: Final = 0.3  # the share of kills that come at a moment after the last one, whatever the job does then
SOON_SECONDS: Final = 3.0
STUCK_SECONDS: Final = 120.0
NO_DAEMON: Final = 2  # ckptd-run's exit code
_END = re.compile(r"trained until step (\d+) sha256=(\w{64})")


@dataclass(frozen=True, slots=True)
class Kill:
    """``after_step``: when the job has come so far for the first time; None: ``seconds`` after the last kill."""

    victim: str
    node: int
    after_step: int | None
    seconds: float


def plan(seed: int, kills: int, steps: int, nodes: int) -> list[Kill]:
    """Who dies when. Pure; round after round of VICTIMS, each shuffled; spread over the run, none in its last tenth."""
    rng = random.Random(f"fixed {seed}")
    victims: list[str] = []
    while len(victims) < kills:
        victims += rng.sample(VICTIMS, len(VICTIMS))
    moments = sorted(rng.randrange(EVERY_STEPS, steps * 9 // 10) for _ in range(kills))
    return [
        Kill(victim, rng.randrange(nodes), step, rng.uniform(0.0, PACE_SECONDS))
        if number == 0 or rng.random() > SOON
        else Kill(victim, rng.randrange(nodes), None, rng.uniform(0.0, SOON_SECONDS))
        for number, (victim, step) in enumerate(zip(victims, moments, strict=False))
    ]


def run(seed: int, directory: Path, say: Say, kills: int = 30, steps: int = 600, nodes: int = 2) -> None:
    """Do it. Raises ChaosError or DemoError when something does not hold."""
    expected = _undisturbed(directory / "undisturbed", steps, nodes)
    say(f"{nodes} ranks trained {steps} steps undisturbed: sha256 {expected[1][:16]}…")
    arguments = ("--until", str(steps), "--pace", str(PACE_SECONDS))
    scene = Scene(directory, False, nodes=nodes, min_nodes=nodes, job=Job(TRAINER, arguments, EVERY_STEPS))
    try:
        scene.start()
        for number, kill in enumerate(plan(seed, kills, steps, nodes), 1):
            if kill.after_step is not None:
                _until(scene, f"step {kill.after_step}", partial(_beyond, scene, kill.after_step))
            time.sleep(kill.seconds)  # the moment itself, not a wait for anything
            node = scene.nodes[kill.node]
            _strike(scene, kill.victim, node)
            say(f"{number}/{kills} {kill.victim} of node {node.name} killed, furthest step {scene.furthest()}")
        _until(scene, "the end", lambda: all(needed(node.agent).code == 0 for node in scene.nodes))
        scene.cluster.output.wait_for("the last line", lambda: _ending(list(scene.cluster.output)) is not None, 10.0)
        scene.check(thorough=True)
        _compare(scene, expected, steps)
        worlds = len({one.generation for one in scene.restored()})
        say(f"{kills} kills, {worlds} generations: weights, optimizer, buffers and random generators bit-identical")
    finally:
        scene.close()


def _strike(scene: Scene, victim: str, node: Node) -> None:
    """SIGKILL, and what a supervisor would do about it at once."""
    rng = random.Random(0)  # strikes of these kinds draw nothing
    if victim == "trainer":
        _until(scene, f"a trainer of node {node.name}", partial(_kill_trainer, scene, node))
    elif victim == "daemon":
        daemon(scene, node, rng)
    elif victim == "agent":
        _until(scene, f"an agent of node {node.name}", lambda: needed(node.agent).code is None)
        agent(scene, node, rng)
    elif victim == "node":
        node.kill()
        node.start()
    else:
        process = needed(scene.cluster.coordinator)
        process.signal(signal.SIGKILL)
        process.wait(GONE_SECONDS)
        scene.cluster.start_coordinator()


def _until(scene: Scene, what: str, condition: Callable[[], bool]) -> None:
    """Wait, and meanwhile be the supervisor of agents that came while their node's daemon was away: those end with code 2."""

    def supervised() -> bool:
        for node in scene.nodes:
            code = needed(node.agent).code
            if code == NO_DAEMON:
                node.start_agent()
            elif code:
                raise ChaosError(f"the agent of node {node.name} ended with exit code {code}")
        return condition()

    until(what, supervised, STUCK_SECONDS)


def _beyond(scene: Scene, step: int) -> bool:
    return scene.furthest() >= step


def _kill_trainer(scene: Scene, node: Node) -> bool:
    """False when there is none just now, because the job recovers from an earlier kill."""
    try:
        os.kill(scene.trainer_pid(node), signal.SIGKILL)
    except (ChaosError, ProcessLookupError):
        return False
    return True


def _undisturbed(directory: Path, steps: int, nodes: int) -> tuple[dict[int, float], str]:
    """The same ranks as plain processes without any daemon or launcher: (losses by step, digest of the end)."""
    directory.mkdir()
    output = Output(directory)
    fixed = {**os.environ, "CKPTD_SOCKET": str(directory / "none"), "CKPTD_JOB": "undisturbed", "OMP_NUM_THREADS": "1"}
    fixed |= {"WORLD_SIZE": str(nodes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(TRAINER), "--until", str(steps)]
    ranks = [Process(f"rank-{rank}", command, {**fixed, "RANK": str(rank)}, output) for rank in range(nodes)]
    try:
        codes = [rank.wait(END_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.stop()
    output.wait_for("the output's end", lambda: output.ended("rank-0"), 10.0)
    ending = _ending(list(output))
    if any(codes) or ending is None:
        raise ChaosError(f"the undisturbed run ended with {codes}; its logs are in {directory}")
    return {step.step: step.loss for step in read_steps(list(output))}, ending[1]


def _ending(lines: Sequence[Line]) -> tuple[int, str] | None:
    found = [match for line in lines if (match := _END.search(line.text))]
    return (int(found[-1][1]), found[-1][2]) if found else None


def _compare(scene: Scene, expected: tuple[dict[int, float], str], steps: int) -> None:
    losses, digest = expected
    wrong = [step for step in scene.steps() if step.loss != losses[step.step]]
    if wrong:
        raise ChaosError(f"{len(wrong)} steps differ from the undisturbed run, the first is {wrong[0]}")
    if _ending(list(scene.cluster.output)) != (steps, digest):
        raise ChaosError(f"the end {_ending(list(scene.cluster.output))} is not that of the undisturbed run, {(steps, digest)}")
    problems = judge(surviving(read(scene.ledger)), steps)
    if problems:
        raise ChaosError("; ".join(problems))
