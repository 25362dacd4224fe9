"""Trials with SIGSTOP past the lease, and SIGCONT: what was taken for dead wakes up; nothing that it does then may count."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from chaos.scene import Scene, needed, until
from chaos.trial import Play, Trial
from chaos.victims import ALONE_STEPS
from ckptd.demo.process import Process

PAST_LEASE_SECONDS: Final = 3.5  # the scene's lease is 1.5
STEPPED_DOWN_SECONDS: Final = 30.0


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """All of these, for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # somebody has killed it meanwhile


def _past_lease(pids: list[int]) -> None:
    with stopped(pids):
        time.sleep(PAST_LEASE_SECONDS)  # that a time goes by is the fault itself


def _stop_daemon(scene: Scene, rng: random.Random) -> int:
    """A silent daemon is not a dead node: training goes on, and nobody is restarted."""
    with stopped([needed(rng.choice(scene.nodes).daemon).pid]):
        began = time.monotonic()
        time.sleep(PAST_LEASE_SECONDS)
        scene.wait_step(began, ALONE_STEPS)
    return 0


def _stop_trainer(scene: Scene, rng: random.Random) -> int:
    _past_lease([scene.trainer_pid(rng.choice(scene.nodes))])
    return 0


def _stop_agent(scene: Scene, rng: random.Random) -> int:
    _past_lease([needed(rng.choice(scene.nodes).agent).pid])
    return 0


def _stop_coordinator(scene: Scene, rng: random.Random) -> int:
    _past_lease([needed(scene.cluster.coordinator).pid])
    return 0


def _stop_node(scene: Scene, rng: random.Random) -> int:
    """The others go on without it; when it wakes, what it still holds is of a generation that is over."""
    node = rng.choice(scene.nodes)
    with stopped(scene.pids(node)):
        scene.wait_world(len(scene.nodes) - 1, time.monotonic())
        scene.wait_commit(scene.newest_commit())
    return 0


def _replace_coordinator(scene: Scene, rng: random.Random) -> int:
    """Stopped, replaced by another one, woken: the old one must step down without having written anything."""
    old = needed(scene.cluster.coordinator)
    with stopped([old.pid]):
        scene.cluster.start_coordinator()
        time.sleep(rng.uniform(0.0, 1.0))  # the moment at which it wakes
    wait_end(old)
    return 0


def wait_end(process: Process) -> None:
    """Until it has ended by itself."""
    until(f"{process.name} to step down", lambda: process.code is not None, STEPPED_DOWN_SECONDS)


def _trial(name: str, play: Play, quiet: bool) -> Trial:
    return Trial(f"stop {name}", play, quiet)


STOPS: Final = [
    _trial("daemon", _stop_daemon, quiet=True),
    _trial("trainer", _stop_trainer, quiet=False),
    _trial("agent", _stop_agent, quiet=True),
    _trial("coordinator", _stop_coordinator, quiet=True),
    _trial("node", _stop_node, quiet=False),
    _trial("coordinator, replaced", _replace_coordinator, quiet=False),
]
