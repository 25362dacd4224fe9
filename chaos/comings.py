"""Nodes that come and go: three of them, lost and back at chosen moments (PROTOCOLS 5).

A scenario begins and ends with all nodes training together. It says which worlds it expects to see in between: any other one is
a restart that nobody needed. All that is random (which node, which moment within the chosen one) follows from the seed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.campaign import compare, end
from chaos.scene import ChaosError, Scene, needed, until
from chaos.victims import GONE_SECONDS
from ckptd.demo.cluster import Node

NODES: Final = 3
TRIES: Final = 3
SOON_SECONDS: Final = 60.0

Say = Callable[[str], None]
Act = Callable[[Scene, random.Random, Say], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """``act`` on a scene of NODES nodes that was made with this ``min_nodes``. Raises ChaosError or DemoError."""

    min_nodes: int
    act: Act


@dataclass(frozen=True, slots=True)
class Visits:
    """Which scenarios, in which order."""

    seed: int
    names: Sequence[str]
    minio: bool

    def repeat(self) -> str:
        """The command that does the same again."""
        store = "minio" if self.minio else "directory"
        return f"make chaos ARGS='--seed {self.seed} --scenarios {','.join(self.names)} --store {store}'"


def run_scenarios(visits: Visits, directory: Path, say: Say) -> None:
    """Do them one after the other, in one scene where they can share it; then end the job and compare its losses."""
    for min_nodes in sorted({SCENARIOS[name].min_nodes for name in visits.names}):
        scene = Scene(directory, visits.minio, nodes=NODES, min_nodes=min_nodes)
        try:
            scene.start()
            say(f"{NODES} nodes train together, min_nodes={min_nodes}")
            for name in visits.names:
                if SCENARIOS[name].min_nodes == min_nodes:
                    play(scene, name, visits.seed, say)
            end(scene, scene.nodes)
            say(f"trained until step {scene.furthest()}; comparing with an undisturbed run")
            compare(scene)
        finally:
            scene.close()


def play(scene: Scene, name: str, seed: int, say: Say) -> None:
    """One scenario on a scene whose nodes all train, and the invariants after it."""
    began = time.monotonic()
    scene.wait_commit(scene.newest_commit())
    scene.check_settled()
    SCENARIOS[name].act(scene, random.Random(f"{name} {seed}"), lambda text: say(f"{name}: {text}"))
    scene.settle()
    scene.wait_commit(scene.newest_commit())
    scene.check_settled()
    scene.check()
    say(f"{name}: all is well again after {time.monotonic() - began:.0f} s")


# ---- the scenarios


def comings_and_goings(scene: Scene, rng: random.Random, say: Say) -> None:
    """3 → 2 → 3 → 1 → 3; the second time two nodes go at once."""
    watch = Worlds(scene)
    lost = rng.sample(scene.nodes, 1)
    _lose(scene, lost, say)
    _back(scene, lost, say)
    lost = rng.sample(scene.nodes, 2)
    _lose(scene, lost, say)
    _back(scene, lost, say)
    watch.expect([2, 3, 1, 3], [2, 3, 1, 2, 3])  # the two may come back too far apart for one restart


def during_save(scene: Scene, rng: random.Random, say: Say) -> None:
    """Every rank has staged its share, and the uploads are under way."""
    watch = Worlds(scene)
    node = rng.choice(scene.nodes)
    now = time.monotonic()
    staged = f"{NODES} of {NODES} ranks sealed, "
    _until_event(scene, now, lambda event: staged in str(event.get("reason")) and event.get("topic") == "snapshot")
    time.sleep(rng.uniform(0.0, 0.2))  # the moment itself, not a wait for anything
    _lose(scene, [node], say)
    _back(scene, [node], say)
    watch.expect([2, 3])


def during_restore(scene: Scene, rng: random.Random, say: Say) -> None:
    """A worker fails; while the new ones restore, a node is lost, and with it the only one that could answer for its share."""
    for _ in range(TRIES):
        watch = Worlds(scene)
        victim, other = rng.sample(scene.nodes, 2)
        now = time.monotonic()
        os.kill(scene.trainer_pid(other), signal.SIGKILL)
        _until_event(scene, now, lambda event: event.get("action") == "NameRestore")
        needed(victim.daemon).signal(signal.SIGSTOP)  # it answers nobody any more, until the power goes
        if len(scene.restored()) == watch.seen:
            _lose(scene, [victim], say)
            _back(scene, [victim], say)
            watch.expect([2, 3])
            return
        needed(victim.daemon).signal(signal.SIGCONT)
        say("that was too late, they had restored; once more")
        scene.wait_world(NODES, now)
        scene.wait_commit(scene.newest_commit())
    raise ChaosError(f"in {TRIES} tries no restore was met")


def while_gathering(scene: Scene, rng: random.Random, say: Say) -> None:
    """A worker fails and all are told to join again; one node's agent does not answer, and then the node is lost."""
    watch = Worlds(scene)
    victim, other = rng.sample(scene.nodes, 2)
    now = time.monotonic()
    needed(victim.agent).signal(signal.SIGSTOP)
    os.kill(scene.trainer_pid(other), signal.SIGKILL)
    _until_event(scene, now, lambda event: "or are dead: " + victim.name in str(event.get("reason")))
    _lose(scene, [victim], say)
    _back(scene, [victim], say)
    watch.expect([2, 3])


def while_meeting(scene: Scene, rng: random.Random, say: Say) -> None:
    """A generation is formed with a newcomer, and the newcomer is lost before the agents have met."""
    watch = Worlds(scene)
    victim = rng.choice(scene.nodes)
    _lose(scene, [victim], say)
    now = time.monotonic()
    scene.start_node(victim)
    _until_event(scene, now, lambda event: event.get("topic") == "scale up")
    needed(victim.agent).signal(signal.SIGSTOP)
    _until_event(scene, now, lambda event: event.get("action") == "FormGeneration")
    _lose(scene, [victim], say)
    _back(scene, [victim], say)
    watch.expect([2, 2, 3])


def store_host(scene: Scene, rng: random.Random, say: Say) -> None:
    """The node whose rank 0 hosts torch's store."""
    watch = Worlds(scene)
    host = next(node for node in scene.nodes if scene.hosts_rank(node, 0))
    _lose(scene, [host], say)
    _back(scene, [host], say)
    watch.expect([2, 3])


def coordinator_and_node(scene: Scene, rng: random.Random, say: Say) -> None:
    """Both at once: nobody is left who knew the world, and training stands still until there is a new coordinator."""
    watch = Worlds(scene)
    node = rng.choice(scene.nodes)
    process = needed(scene.cluster.coordinator)
    process.signal(signal.SIGKILL)
    killed = time.monotonic()
    node.kill()
    process.wait(GONE_SECONDS)
    scene.cluster.start_coordinator()
    say(f"coordinator and node {node.name} are lost")
    _goes_on(scene, killed, 1, say)
    _back(scene, [node], say)
    watch.expect([2, 3])


def too_few(scene: Scene, rng: random.Random, say: Say) -> None:
    """Two of three are lost where two are needed: the third one waits, says so, and goes on with the first that is back."""
    watch = Worlds(scene)
    lost = rng.sample(scene.nodes, 2)
    [left] = [node for node in scene.nodes if node not in lost]
    killed = time.monotonic()
    for node in lost:
        node.kill()
    reason = "1 of min 2 nodes"
    _until_event(scene, killed, lambda event: reason in str(event.get("reason")))
    heard = f"this node waits for a world: {reason}"
    until(f"{left.name}'s agent to say that it waits", lambda: _said(scene, left, heard, killed), SOON_SECONDS)
    say(f"{_names(lost)} are lost, node {left.name} waits: {reason}")
    waiting = time.monotonic()
    scene.start_node(lost[0])
    scene.wait_world(2, waiting)
    if any(step.world == 1 for step in scene.steps()):
        raise ChaosError("a world of 1 trained, with min_nodes=2")
    say("two nodes are enough")
    _back(scene, lost[1:], say)
    watch.expect([2, 3])


SCENARIOS: Final[dict[str, Scenario]] = {
    "comings": Scenario(1, comings_and_goings),
    "save": Scenario(1, during_save),
    "restore": Scenario(1, during_restore),
    "gathering": Scenario(1, while_gathering),
    "meeting": Scenario(1, while_meeting),
    "store-host": Scenario(1, store_host),
    "coordinator-and-node": Scenario(2, coordinator_and_node),
    "too-few": Scenario(2, too_few),
}


# ---- what they are made of


class Worlds:
    """The worlds that trained since this was made, as their ranks told after they had restored."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.seen = len(scene.restored())

    def expect(self, *possible: list[int]) -> None:
        """Raises ChaosError when their sizes, in order, are none of ``possible``."""
        sizes = {one.generation: one.world for one in self._scene.restored()[self.seen :]}
        found = [sizes[generation] for generation in sorted(sizes)]
        if found not in possible:
            raise ChaosError(f"there were worlds of {found}, expected {' or '.join(map(str, possible))}")


def _lose(scene: Scene, nodes: Sequence[Node], say: Say) -> None:
    """SIGKILL everything on these nodes; the others go on and commit."""
    killed = time.monotonic()
    for node in nodes:
        node.kill()
    say(f"{_names(nodes)} lost after step {scene.furthest()}")
    _goes_on(scene, killed, len(nodes), say)


def _goes_on(scene: Scene, killed: float, lost: int, say: Say) -> None:
    scene.wait_world(NODES - lost, killed)
    first = next(step for step in scene.steps() if step.seconds > killed and step.world == NODES - lost)
    say(f"a world of {NODES - lost} went on with step {first.step}, {first.seconds - killed:.1f} s after the loss")
    scene.wait_commit(scene.newest_commit())
    scene.check()


def _back(scene: Scene, nodes: Sequence[Node], say: Say) -> None:
    """They come back, and are taken in after a commit of the world that runs."""
    back = time.monotonic()
    for node in nodes:
        scene.start_node(node)
    scene.wait_world(NODES, back)
    check_scale_up(scene.events(back))
    say(f"{_names(nodes)} taken in {time.monotonic() - back:.1f} s after the start")


def check_scale_up(events: Iterable[dict[str, object]]) -> None:
    """Raises ChaosError when a world was ended for a newcomer before it had committed since the newcomer was there."""
    waits = committed = found = False
    for event in events:
        if event.get("topic") == "scale up":
            waits = True
        elif event.get("event") == "attempt settled" and event.get("seq") is not None:
            committed = waits
        elif event.get("event") == "regroup" and str(event.get("reason")).startswith("scale up"):
            found = True
            if not committed:
                raise ChaosError(f"a world was ended for a newcomer before it had committed: {event}")
            waits = committed = False
    if not found:
        raise ChaosError("nobody was taken in")


def _until_event(scene: Scene, after: float, wanted: Callable[[dict[str, object]], bool]) -> None:
    """Wait for such a line of the coordinator; looked at after every line, so that the moment is met."""
    scene.cluster.output.wait_for("the chosen moment", lambda: any(map(wanted, scene.events(after))), SOON_SECONDS)


def _said(scene: Scene, node: Node, text: str, after: float) -> bool:
    source = f"{node.name}-agent"
    return any(line.source == source and line.seconds > after and text in line.text for line in scene.cluster.output)


def _names(nodes: Sequence[Node]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {' and '.join(node.name for node in nodes)}"
