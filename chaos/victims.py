"""The victims: how each is killed with SIGKILL, and what a supervisor would bring back afterwards.

A strike returns the time of the kill, and only after what must be back is back. Whether training went on, the campaign sees.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chaos.scene import ChaosError, Scene, needed, until
from ckptd.demo.cluster import Node

ALONE_STEPS: Final = 12  # that training must do while something is away
GONE_SECONDS: Final = 15.0


def trainer(scene: Scene, node: Node, rng: random.Random) -> float:
    """One worker. Its agent starts a new one by itself."""
    pid = scene.trainer_pid(node)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed


def daemon(scene: Scene, node: Node, rng: random.Random) -> float:
    """A daemon, as a rule while it uploads."""
    process = needed(node.daemon)
    killed = time.monotonic()
    process.signal(signal.SIGKILL)
    process.wait(GONE_SECONDS)
    node.start_daemon()
    return killed


def wait_workers(scene: Scene, node: Node) -> None:
    """Wait until nothing but the daemon is left on a node whose agent was killed. Raises ChaosError naming what is."""

    def left() -> list[int]:
        return [pid for pid in scene.pids(node) if pid != needed(node.daemon).pid]

    try:
        until(f"the workers of node {node.name} to end", lambda: not left(), GONE_SECONDS)
    except ChaosError as error:
        told = [
            f"{file.read_text()[:200]!r}" for pid in left() for file in (Path(f"/proc/{pid}/stat"), Path(f"/proc/{pid}/wchan"))
        ]
        raise ChaosError(f"{error}; left: {'; '.join(told)}") from error


def agent(scene: Scene, node: Node, rng: random.Random) -> float:
    """A launcher. Its fork server and workers must die with it: nobody else would end them."""
    process = needed(node.agent)
    killed = time.monotonic()
    process.signal(signal.SIGKILL)
    process.wait(GONE_SECONDS)
    wait_workers(scene, node)
    scene.start_agent(node)
    return killed


def whole_node(scene: Scene, node: Node, rng: random.Random) -> float:
    """All processes of a node and its shared memory. It comes back when the others have gone on without it."""
    killed = time.monotonic()
    node.kill()
    after = scene.newest_commit()
    scene.wait_step(time.monotonic(), ALONE_STEPS, 90.0)
    scene.wait_commit(after)
    scene.start_node(node)
    return killed


def coordinator(scene: Scene, node: Node, rng: random.Random) -> float:
    """The coordinator."""
    process = needed(scene.cluster.coordinator)
    killed = time.monotonic()
    process.signal(signal.SIGKILL)
    process.wait(GONE_SECONDS)
    if rng.random() < 0.5:
        scene.wait_step(time.monotonic(), ALONE_STEPS)  # training goes on meanwhile
    scene.cluster.start_coordinator()
    return killed


def minio(scene: Scene, node: Node, rng: random.Random) -> float:
    """The store. Training must go on while it is away, and it comes back on its data."""
    server = scene.minio
    assert server is not None, "the campaign has no MinIO"
    killed = time.monotonic()
    server.kill()
    scene.wait_step(time.monotonic(), rng.randrange(1, 3 * ALONE_STEPS))
    server.start()
    return killed


Strike = Callable[[Scene, Node, random.Random], float]

STRIKES: Final[dict[str, Strike]] = {
    "trainer": trainer,
    "daemon": daemon,
    "agent": agent,
    "node": whole_node,
    "coordinator": coordinator,
    "minio": minio,
}
"""By name. In the order in which a short campaign without a say in it would take them."""

REGROUPS: Final = frozenset({"trainer", "agent", "node"})
"""Whose death ends a generation. All others' must restart no worker."""
