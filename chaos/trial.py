"""A trial: one fault, dealt to a scene where all is well, and the question whether all is well again afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from chaos.scene import Scene

HEALED_SECONDS = 90.0

Play = Callable[[Scene, random.Random], int]
"""Deal it, and take it away again; returns how many SIGKILLs that took."""


@dataclass(frozen=True, slots=True)
class Trial:
    """``quiet``: no worker may be restarted because of it."""

    name: str
    play: Play
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial did, when all held: SIGKILLs, and commits and ranks' restores from its beginning to its end."""

    name: str
    kills: int
    commits: int
    restores: int
    seconds: float


def perform(scene: Scene, trial: Trial, rng: random.Random) -> Outcome:
    """Play it. Raises ChaosError when something promised does not hold, or all is not well in time (I12)."""
    started, commits, restores = time.monotonic(), len(scene.inspector.logbook.read().commits), len(scene.restored())
    scene.wait_commit(scene.newest_commit())
    scene.check_settled()
    time.sleep(rng.uniform(0.0, 0.3))  # the moment itself, so that faults meet every phase of a snapshot; no wait for anything
    kills = trial.play(scene, rng)
    healed = time.monotonic()
    scene.wait_world(len(scene.nodes), healed, HEALED_SECONDS)
    scene.wait_commit(scene.newest_commit(), HEALED_SECONDS)
    scene.wait_world(len(scene.nodes), time.monotonic(), HEALED_SECONDS)  # whoever was to be taken in has been
    if trial.quiet:
        scene.check_settled()
    scene.settle()
    scene.check()
    story = scene.inspector.logbook.read()
    seconds = time.monotonic() - started
    return Outcome(trial.name, kills, len(story.commits) - commits, len(scene.restored()) - restores, seconds)
