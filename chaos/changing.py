"""Kills in a world that changes its size: each sample exactly once by the trainers' own ledger, every loss that of a quiet run.

Nodes and agents die; what died comes back a little later, alone or with others, and sometimes dies before it was taken in.
"""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.campaign import Say, end, undisturbed_losses
from chaos.ledger import GLOBAL_BATCH, NUM_SAMPLES, judge, read, surviving
from chaos.scene import ChaosError, Job, Scene, needed
from chaos.victims import GONE_SECONDS, wait_workers
from ckptd.demo.cluster import Node

EVERY_STEPS: Final = 8
PACE_SECONDS: Final = 0.1
WORLD_SECONDS: Final = 120.0
LOSS_TOLERANCE: Final = 1e-9
"""float64 sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True)
class Move:
    """One kill, and before it: how many of those that are away come back, and if the kill waits until they are taken in."""

    returns: int
    settled: bool
    victim: str
    place: int


def plan(seed: int, kills: int, nodes: int) -> list[Move]:
    """A walk over the sizes 1 to ``nodes``. Pure. One node at least lives on; ``place``: which of the living ones dies."""
    rng = random.Random(f"changing {seed}")
    moves, alive = [], nodes
    for _ in range(kills):
        returns = rng.randint(1 if alive == 1 else 0, nodes - alive)
        alive += returns
        moves.append(Move(returns, rng.random() < 0.7, rng.choice(("node", "agent")), rng.randrange(alive)))
        alive -= 1
    return moves


def run(seed: int, directory: Path, say: Say, kills: int = 20, nodes: int = 3) -> None:
    """Do it. Raises ChaosError or DemoError when something does not hold."""
    arguments = ("--pace", str(PACE_SECONDS))
    scene = Scene(directory, False, nodes=nodes, job=Job(arguments=arguments, every_steps=EVERY_STEPS))
    away: list[Node] = []
    try:
        scene.start()
        for number, move in enumerate(plan(seed, kills, nodes), 1):
            rng = random.Random(f"move {seed} {number}")
            back = [away.pop(rng.randrange(len(away))) for _ in range(move.returns)]
            for node in back:
                _start(scene, node)
            alive = [node for node in scene.nodes if node not in away]
            if move.settled:
                scene.wait_world(len(alive), time.monotonic(), WORLD_SECONDS)
            scene.wait_step(time.monotonic(), rng.randint(1, EVERY_STEPS), WORLD_SECONDS)
            time.sleep(rng.uniform(0.0, PACE_SECONDS))  # the moment itself, not a wait for anything
            victim = alive[move.place]
            world = scene.steps()[-1].world
            _strike(scene, victim, move.victim)
            away.append(victim)
            say(
                f"{number}/{kills} {move.victim} {victim.name} killed in step {scene.furthest() + 1} of a world of {world},"
                f" {len(alive) - 1} of {nodes} left"
            )
        for node in away:
            _start(scene, node)
        scene.wait_world(nodes, time.monotonic(), WORLD_SECONDS)
        scene.settle()
        end(scene, scene.nodes)
        say(_verdict(scene))
    finally:
        scene.close()


def _start(scene: Scene, node: Node) -> None:
    if node.daemon is None or node.daemon.code is not None:
        scene.start_node(node)
    else:
        node.start_agent()


def _strike(scene: Scene, node: Node, victim: str) -> None:
    """SIGKILL; what died stays away."""
    if victim == "node":
        node.kill()
        return
    agent = needed(node.agent)
    agent.signal(signal.SIGKILL)
    agent.wait(GONE_SECONDS)
    wait_workers(scene, node)


def _verdict(scene: Scene) -> str:
    """Judge the whole run; a line about it."""
    last = scene.furthest()
    history = surviving(read(scene.ledger))
    problems = judge(history, last)
    expected = undisturbed_losses(scene)
    apart = max((abs(step.loss - expected[step.step]), step.step) for step in scene.steps())
    if apart[0] > LOSS_TOLERANCE:
        problems.append(f"the loss of step {apart[1]} is {apart[0]:.3g} from that of the undisturbed run")
    if problems:
        raise ChaosError("; ".join(problems))
    worlds = [step.world for step in scene.steps()]
    sizes = "→".join(str(size) for at, size in enumerate(worlds) if at == 0 or worlds[at - 1] != size)
    return (
        f"{last} steps, {last * GLOBAL_BATCH} samples, each exactly once per pass over {NUM_SAMPLES};"
        f" {history.void} steps were void; worlds {sizes}; losses at most {apart[0]:.1g} apart"
    )
