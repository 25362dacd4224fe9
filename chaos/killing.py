"""Trials with SIGKILL: single victims (`victims` has them), several at once, and at the worst moments."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Final

from chaos.s3proxy import Fault, S3Proxy, Verb
from chaos.scene import ChaosError, Scene, needed, until
from chaos.trial import Play, Trial
from chaos.victims import ALONE_STEPS, GONE_SECONDS, STRIKES

UNDER_WAY_SECONDS: Final = 30.0


def _victim(name: str) -> Play:
    def play(scene: Scene, rng: random.Random) -> int:
        STRIKES[name](scene, rng.choice(scene.nodes), rng)
        return 1

    return play


def kill_trainer(scene: Scene, rng: random.Random) -> int:
    """One rank of any node."""
    os.kill(scene.trainer_pid(rng.choice(scene.nodes)), signal.SIGKILL)
    return 1


def _two_nodes(scene: Scene, rng: random.Random) -> int:
    """Two nodes at once; they come back when the rest has gone on without them."""
    pair = rng.sample(scene.nodes, 2)
    for node in pair:
        node.kill()
    scene.wait_step(time.monotonic(), ALONE_STEPS, 90.0)
    for node in pair:
        scene.start_node(node)
    return 2


def _coordinator_and_node(scene: Scene, rng: random.Random) -> int:
    """The coordinator and a node at once: the new coordinator never hears of the node."""
    node = rng.choice(scene.nodes)
    process = needed(scene.cluster.coordinator)
    process.signal(signal.SIGKILL)
    node.kill()
    process.wait(GONE_SECONDS)
    scene.cluster.start_coordinator()
    scene.wait_step(time.monotonic(), ALONE_STEPS, 90.0)
    scene.start_node(node)
    return 2


def _node_in_rendezvous(scene: Scene, rng: random.Random) -> int:
    """A rank ends the world, and while the next one forms another node dies."""
    first, second = rng.sample(scene.nodes, 2)
    os.kill(scene.trainer_pid(first), signal.SIGKILL)
    time.sleep(rng.uniform(0.0, 0.15))  # the moment, not a wait
    second.kill()
    scene.wait_step(time.monotonic(), ALONE_STEPS, 90.0)
    scene.start_node(second)
    return 2


def _node_in_restore(scene: Scene, rng: random.Random) -> int:
    """A rank ends the world, and while the next one reads its checkpoint another node dies."""
    first, second = rng.sample(scene.nodes, 2)
    with _proxy(scene).fault(Fault("slow", frozenset({"GET"}), key=r"/data/", seconds=0.5)):
        os.kill(scene.trainer_pid(first), signal.SIGKILL)
        _wait_under_way(scene, "GET", r"/data/")
        second.kill()
    scene.wait_step(time.monotonic(), ALONE_STEPS, 90.0)
    scene.start_node(second)
    return 2


def _daemon_in_upload(scene: Scene, rng: random.Random) -> int:
    """A daemon, with one of its segments on the way."""
    node = rng.choice(scene.nodes)
    with _proxy(scene).fault(Fault("slow", frozenset({"PUT"}), key=rf"/data/.*/{node.name}\.", seconds=0.3)):
        _wait_under_way(scene, "PUT", f"/{node.name}.")
        STRIKES["daemon"](scene, node, rng)
    return 1


def _coordinator_in_commit(scene: Scene, rng: random.Random) -> int:
    """The coordinator, when its record was written and it has not heard so."""
    with _proxy(scene).fault(Fault("lost", frozenset({"CREATE"}), key="/log/", limit=1)) as fault:
        until("a commit whose answer is lost", lambda: fault.done > 0, UNDER_WAY_SECONDS)
        process = needed(scene.cluster.coordinator)
        process.signal(signal.SIGKILL)
        process.wait(GONE_SECONDS)
    scene.cluster.start_coordinator()
    return 1


def _proxy(scene: Scene) -> S3Proxy:
    if scene.proxy is None:
        raise ChaosError("this needs a fault proxy before the store")
    return scene.proxy


def _wait_under_way(scene: Scene, verb: Verb, text: str) -> None:
    proxy = _proxy(scene)
    until(
        f"a {verb} of {text} to be under way",
        lambda: any(one == verb and text in key for one, key in list(proxy.under_way)),
        UNDER_WAY_SECONDS,
    )


KILL_TRAINER: Final = Trial("kill trainer", kill_trainer)
KILL_DAEMON: Final = Trial("kill daemon", _victim("daemon"), quiet=True)
KILL_AGENT: Final = Trial("kill agent", _victim("agent"))
KILL_NODE: Final = Trial("kill node", _victim("node"))
KILL_COORDINATOR: Final = Trial("kill coordinator", _victim("coordinator"), quiet=True)
KILL_MINIO: Final = Trial("kill MinIO", _victim("minio"), quiet=True)
KILL_TWO_NODES: Final = Trial("kill two nodes at once", _two_nodes)
KILL_COORDINATOR_AND_NODE: Final = Trial("kill coordinator and node", _coordinator_and_node)
KILL_NODE_IN_RENDEZVOUS: Final = Trial("kill node in rendezvous", _node_in_rendezvous)
KILL_NODE_IN_RESTORE: Final = Trial("kill node in restore", _node_in_restore)
KILL_DAEMON_IN_UPLOAD: Final = Trial("kill daemon in upload", _daemon_in_upload, quiet=True)
KILL_COORDINATOR_IN_COMMIT: Final = Trial("kill coordinator in commit", _coordinator_in_commit, quiet=True)
