"""A campaign: seeded victims at seeded moments, and after each the question whether all that was promised held."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.ledger import judge, read, surviving
from chaos.scene import EVERY_STEPS, ChaosError, Scene, needed, until
from chaos.victims import REGROUPS, STRIKES
from ckptd.demo.cluster import Node
from ckptd.demo.process import Output, Process
from ckptd.demo.verdict import read_steps, wrong_losses

LAST_STEPS = 40
END_SECONDS = 120.0
RESTORE_SECONDS = 90.0
FREED_SECONDS = 15.0
_REFERENCE_SECONDS = 240.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do. All that is random follows from the seed."""

    seed: int
    kills: int
    victims: Sequence[str]
    minio: bool
    nodes: int = 2

    def drawn(self) -> list[str]:
        """The victims in their order: all kinds in turn, each round shuffled."""
        rng = random.Random(f"victims {self.seed}")
        order: list[str] = []
        while len(order) < self.kills:
            order += rng.sample(list(self.victims), len(self.victims))
        return order[: self.kills]

    def repeat(self) -> str:
        """The command that does the same again."""
        store = "minio" if self.minio else "directory"
        victims = ",".join(self.victims)
        size = f"--nodes {self.nodes} --store {store}"
        return f"make chaos ARGS='--seed {self.seed} --kills {self.kills} --victims {victims} {size}'"


def run(orders: Orders, directory: Path, say: Say) -> None:
    """Do it. Raises ChaosError or DemoError as soon as something does not hold."""
    scene = Scene(directory, orders.minio, nodes=orders.nodes)
    try:
        scene.start()
        say(f"{orders.nodes} nodes train together")
        for number, victim in enumerate(orders.drawn(), 1):
            rng = random.Random(f"kill {orders.seed} {number}")
            _kill(scene, victim, rng, lambda text, number=number: say(f"{number}/{orders.kills} {text}"))  # type: ignore[misc]
        end(scene, scene.nodes)
        commits = len(scene.inspector.logbook.read().commits)
        say(f"trained until step {scene.furthest()}, {commits} commits; comparing with an undisturbed run")
        compare(scene)
    finally:
        scene.close()


def _kill(scene: Scene, victim: str, rng: random.Random, say: Say) -> None:
    before = scene.wait_commit(scene.newest_commit())  # all is well
    _moment(scene, rng)
    scene.check_settled()
    node = rng.choice(scene.nodes)
    where = f" of node {node.name}" if victim in ("trainer", "daemon", "agent") else f" {node.name}" if victim == "node" else ""
    step = scene.furthest()
    killed = STRIKES[victim](scene, node, rng)
    back = time.monotonic()
    if victim in REGROUPS:
        restored = scene.settled_ranks
        until("workers that restore", lambda: len(scene.restored()) > restored, RESTORE_SECONDS)
        scene.wait_world(len(scene.nodes), back)
        scene.settle()
    first = next(seen for seen in scene.steps() if seen.seconds > killed and (victim not in REGROUPS or seen.step <= step + 1))
    scene.wait_step(time.monotonic())
    scene.wait_commit(max(before, scene.newest_commit()))
    took = time.monotonic() - back
    scene.check_settled()
    scene.check()
    say(f"{victim}{where} killed in step {step + 1}: on with step {first.step}, commits {took:.1f} s after its return")


def _moment(scene: Scene, rng: random.Random) -> None:
    """Let a seeded part of the time between two snapshots go by, so that kills meet every phase of one."""
    wanted = scene.furthest() // EVERY_STEPS * EVERY_STEPS + EVERY_STEPS + rng.randrange(EVERY_STEPS // 2)
    scene.wait_step(time.monotonic(), max(1, wanted - scene.furthest()))
    time.sleep(rng.uniform(0.0, 0.1))  # the moment itself, not a wait for anything


def end(scene: Scene, training: Sequence[Node], behind_steps: int = 2 * EVERY_STEPS) -> None:
    """Let the job come to its end on the nodes that train: exit code 0 everywhere, and nothing left behind anywhere.

    ``behind_steps``: how far the last commit may be from the end.
    """
    scene.check_settled()
    new = scene.end_file.with_suffix(".new")
    new.write_text(str(scene.furthest() + LAST_STEPS))
    new.rename(scene.end_file)
    for node in training:
        code = needed(node.agent).wait(END_SECONDS)
        if code != 0:
            raise ChaosError(f"the agent of node {node.name} ended with exit code {code}")
    scene.cluster.output.wait_for("the last line", lambda: _trained(scene), 10.0)
    # A daemon that is told to end before it has heard that its trainers are gone keeps their memory for its successor.
    until("the memory of trainers that have ended to be freed", lambda: not _arenas(scene), FREED_SECONDS)
    for process in [*(needed(node.daemon) for node in scene.nodes), needed(scene.cluster.coordinator)]:
        process.signal(signal.SIGTERM)
        code = process.wait(END_SECONDS)
        if code != 0:
            raise ChaosError(f"{process.name} ended with exit code {code}")
    left = [f"{thing} of node {node.name}" for node in scene.nodes for thing in node.left_over()]
    if left:
        raise ChaosError(f"left behind: {', '.join(left)}")
    scene.check(thorough=True)
    newest = scene.inspector.logbook.read().newest
    if newest is None or newest.step < scene.furthest() - behind_steps:  # one may have been missed, no more
        raise ChaosError(f"the job ended with step {scene.furthest()}, and its last commit is {newest}")


def _arenas(scene: Scene) -> list[Path]:
    return [path for node in scene.nodes for path in node.arena.glob("*.arena")]


def _trained(scene: Scene) -> bool:
    return any(line.text == f"trained until step {scene.furthest()}" for line in scene.cluster.output)


def compare(scene: Scene) -> None:
    """Every step's loss must be that of an undisturbed run, and each sample trained on exactly once by the trainers' ledger."""
    wrong = wrong_losses(scene.steps(), undisturbed_losses(scene))
    if wrong:
        raise ChaosError(f"{len(wrong)} steps differ from the undisturbed run, first: {'; '.join(wrong[:3])}")
    problems = judge(surviving(read(scene.ledger)), scene.furthest())
    if problems:
        raise ChaosError("; ".join(problems[:3]))


def undisturbed_losses(scene: Scene) -> dict[int, float]:
    """Train the same in one plain process without any daemon: step → loss."""
    directory = scene.directory / "undisturbed"
    directory.mkdir()
    output = Output(directory)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"CKPTD_SOCKET": str(directory / "none"), "CKPTD_JOB": "undisturbed", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(scene.job.script), *scene.job.arguments, "--pace", "0", "--until", str(scene.furthest())]
    process = Process("undisturbed", command, environment, output)
    try:
        code = process.wait(_REFERENCE_SECONDS)
    finally:
        process.stop()
    output.wait_for("the last line of the undisturbed run", lambda: output.ended("undisturbed"), 10.0)
    losses = {step.step: step.loss for step in read_steps(list(output))}
    if code != 0 or len(losses) != scene.furthest():
        raise ChaosError(f"the undisturbed run ended with {code} after {len(losses)} steps; its log is in {directory}")
    return losses
