"""The whole campaign: one act after the other, each a scene and its trials, then bugs of ours that must be caught.

An act plays its trials shuffled by the seed. The first thing that does not hold ends the campaign with the command that repeats
the act.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from chaos import disk, killing, stopping, storing
from chaos.bugs import BUGS, Bug
from chaos.campaign import compare, end
from chaos.comings import play as play_scenario
from chaos.disk import small_tmpfs
from chaos.scene import SHIMMED, ChaosError, Scene, stand_in
from chaos.trial import Outcome, Trial, perform

STORE_MIB: Final = 128
ARENA_MIB: Final = 24
CLASSES_LEAST: Final = 20
KILLS_LEAST: Final = 200
TORCH_KILLS_LEAST: Final = 40
BEHIND_STEPS: Final = 400
BUG_TRIES: Final = 3  # of a trial: not each one meets the moment
RESULT: Final = Path(__file__).with_name("results") / "chaos.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Act:
    """``setting`` makes the scene, given an environment for all its processes; ``trials`` are (trial, how many times).

    ``torch``: its trainers are real ones.
    """

    setting: Callable[[Path, int, Mapping[str, str]], Iterator[Scene]]
    trials: Sequence[tuple[Trial, int]]
    torch: bool = False


def _way_to_minio(directory: Path, seed: int, environment: Mapping[str, str]) -> Iterator[Scene]:
    scene = Scene(directory, True, nodes=3, job=stand_in(seed, 3, 1, environment), faults_seed=seed)
    try:
        yield scene
    finally:
        scene.close()


def _rotting_minio(directory: Path, seed: int, environment: Mapping[str, str]) -> Iterator[Scene]:
    """Reads that can't succeed are given up soon, and after two worlds that fail so the checkpoint before is tried."""
    patience = {"CKPTD_STORE__READ_SECONDS": "2", "CKPTD_COORDINATOR__FRUITLESS_GENERATIONS": "2"}
    scene = Scene(directory, True, job=stand_in(seed, 2, 1, {**patience, **environment}))
    try:
        yield scene
    finally:
        scene.close()


def _small_disks(directory: Path, seed: int, environment: Mapping[str, str]) -> Iterator[Scene]:
    """A directory store and arenas, each on a small tmpfs of its own."""
    with ExitStack() as stack:
        store = directory / "disk"
        stack.enter_context(small_tmpfs(store, STORE_MIB))
        scene = Scene(directory, False, nodes=2, job=stand_in(seed, 2, 2, environment), store=store)
        stack.callback(scene.close)
        for node in scene.nodes:
            stack.enter_context(small_tmpfs(node.arena, ARENA_MIB))
        yield scene


def _real_training(directory: Path, seed: int, environment: Mapping[str, str]) -> Iterator[Scene]:
    scene = Scene(directory, True)
    try:
        yield scene
    finally:
        scene.close()


def _scenario(name: str, kills: int) -> Trial:
    def play(scene: Scene, rng: random.Random) -> int:
        play_scenario(scene, name, rng.randrange(1 << 30), lambda _: None)
        return kills

    return Trial(f"scenario {name}", play)


ACTS: Final[dict[str, Act]] = {
    "way": Act(
        _way_to_minio,
        [
            (killing.KILL_TRAINER, 60),
            (killing.KILL_DAEMON, 6),
            (killing.KILL_AGENT, 6),
            (killing.KILL_NODE, 3),
            (killing.KILL_COORDINATOR, 4),
            (killing.KILL_MINIO, 4),
            (killing.KILL_TWO_NODES, 1),
            (killing.KILL_COORDINATOR_AND_NODE, 1),
            (killing.KILL_NODE_IN_RENDEZVOUS, 2),
            (killing.KILL_NODE_IN_RESTORE, 2),
            (killing.KILL_DAEMON_IN_UPLOAD, 4),
            (killing.KILL_COORDINATOR_IN_COMMIT, 3),
            *((trial, 1) for trial in stopping.STOPS),
            *((trial, 1) for trial in storing.BAD_WAYS),
            *((trial, 1) for trial in storing.BAD_ANSWERS),
            *((_scenario(name, kills), 1) for name, kills in (("comings", 3), ("store-host", 1))),
        ],
    ),
    "disk": Act(
        _small_disks,
        [
            (killing.KILL_TRAINER, 56),
            (killing.KILL_DAEMON, 4),
            (disk.FULL_STORE, 1),
            (disk.FULL_ARENA, 1),
            *((trial, 1) for trial in disk.DAMAGES),
        ],
    ),
    "rot": Act(_rotting_minio, [(trial, 3) for trial in disk.MINIO_DAMAGES]),
    "torch": Act(_real_training, [(killing.KILL_TRAINER, TORCH_KILLS_LEAST)], torch=True),
}


@dataclass(slots=True)
class Tally:
    """All outcomes so far, by fault class."""

    outcomes: list[tuple[Outcome, bool]] = field(default_factory=list)  # (what, with real trainers)
    bugs: dict[str, str] = field(default_factory=dict)  # bug → its catcher

    def classes(self) -> dict[str, list[Outcome]]:
        """Fault class → its outcomes. A trainer that is a real one is another class than a stand-in."""
        found: dict[str, list[Outcome]] = {}
        for outcome, torch in self.outcomes:
            found.setdefault(f"{outcome.name} (torch)" if torch else outcome.name, []).append(outcome)
        return found

    def kills(self, torch: bool = False) -> int:
        """SIGKILLs dealt; ``torch``: those of real trainers only."""
        return sum(outcome.kills for outcome, real in self.outcomes if real or not torch)

    def table(self) -> Iterator[str]:
        """For people."""
        yield f"{'fault':34} {'times':>5} {'SIGKILLs':>8} {'commits':>7} {'restores':>8} {'mean s':>6}  verdict"
        for name, outcomes in self.classes().items():
            dealt, commits = sum(one.kills for one in outcomes), sum(one.commits for one in outcomes)
            restores, mean = sum(one.restores for one in outcomes), sum(one.seconds for one in outcomes) / len(outcomes)
            yield f"{name:34} {len(outcomes):5} {dealt:8} {commits:7} {restores:8} {mean:6.1f}  held"
        kills = f"{self.kills()} SIGKILLs, {self.kills(torch=True)} of them of torch trainers"
        yield f"{len(self.classes())} fault classes, {kills}"
        yield "0 acknowledged checkpoints lost, 0 torn or mixed restores, 0 silent corruptions"
        for bug, catcher in self.bugs.items():
            yield f"bug of ours: {bug:34} caught by {catcher}"

    def shortcomings(self) -> list[str]:
        """What a whole campaign must have, and this one hasn't."""
        counts = [
            (len(self.classes()), CLASSES_LEAST, "fault classes"),
            (self.kills(), KILLS_LEAST, "SIGKILLs"),
            (self.kills(torch=True), TORCH_KILLS_LEAST, "SIGKILLs of torch trainers"),
        ]
        return [f"{count} {what}, at least {least} are asked for" for count, least, what in counts if count < least]

    def write(self, seed: int, seconds: float, path: Path = RESULT) -> None:
        """The result as JSON."""
        path.parent.mkdir(exist_ok=True)
        classes = {
            name: {
                "times": len(outcomes),
                **{key: sum(asdict(one)[key] for one in outcomes) for key in ("kills", "commits", "restores")},
            }
            for name, outcomes in self.classes().items()
        }
        totals = {"kills": self.kills(), "torch_kills": self.kills(torch=True), "seconds": round(seconds)}
        path.write_text(json.dumps({"seed": seed, **totals, "faults": classes, "bugs": self.bugs}, indent=1) + "\n")


def draw(name: str, seed: int, only: Sequence[str] = (), times: int | None = None) -> list[Trial]:
    """An act's trials in their order. ``only``: of these names alone; ``times``: each at most so often."""
    trials = [
        trial
        for trial, most in ACTS[name].trials
        if not only or trial.name in only
        for _ in range(most if times is None else min(most, times))
    ]
    return random.Random(f"act {name} {seed}").sample(trials, len(trials))


def run_act(name: str, seed: int, trials: Sequence[Trial], directory: Path, say: Say, tally: Tally) -> None:
    """Play it. Raises ChaosError or DemoError as soon as something does not hold."""
    act = ACTS[name]
    place = directory / name
    place.mkdir()
    with contextmanager(act.setting)(place, seed, {}) as scene:
        scene.start()
        say(f"act {name}: {len(scene.nodes)} nodes train together; {len(trials)} trials, seed {seed}")
        for number, trial in enumerate(trials, 1):
            say(f"{number}/{len(trials)} {trial.name}")
            try:
                outcome = perform(scene, trial, random.Random(f"trial {name} {seed} {number}"))
            except ChaosError as error:
                raise ChaosError(f"{trial.name}: {error}") from error
            tally.outcomes.append((outcome, act.torch))
        for _ in range(2):  # a store that was away may hold up one more snapshot, for as long as its retries wait
            scene.wait_commit(scene.newest_commit())
        if act.torch:
            end(scene, scene.nodes)
        else:  # whose steps are so quick that a snapshot lasts for many of them
            end(scene, scene.nodes, BEHIND_STEPS)
        if not scene.words.acknowledged:
            raise ChaosError("nobody was told that anything is durable: the check of acknowledgements checks nothing")
        if scene.proxy is not None:
            say(f"faults of the S3 proxy: {dict(sorted(scene.proxy.counts.items()))}")
        say(f"act {name}: trained until step {scene.furthest()}, {len(scene.inspector.logbook.read().commits)} commits")
        if act.torch:
            say("comparing with an undisturbed run")
            compare(scene)


def repeat(seed: int, acts: Sequence[str], only: Sequence[str], times: int | None) -> str:
    """The command that does the same again."""
    options = f"--seed {seed} --acts {','.join(acts)}"
    options += f' --only "{",".join(only)}"' if only else ""
    options += f" --times {times}" if times is not None else ""
    return f"make chaos ARGS='{options}'"


def run_acts(
    seed: int, acts: Sequence[str], only: Sequence[str], times: int | None, directory: Path, say: Say, tally: Tally
) -> None:
    """Play these acts. What fails is a ChaosError that ends in the command to repeat it."""
    for name in acts:
        began = time.monotonic()
        try:
            run_act(name, seed, draw(name, seed, only, times), directory, say, tally)
        except Exception as error:
            raise ChaosError(
                f"act {name}: {type(error).__name__}: {error}\nrepeat: {repeat(seed, [name], only, times)}"
            ) from error
        say(f"act {name}: all held, {time.monotonic() - began:.0f} s")


def run_bugs(seed: int, names: Sequence[str], directory: Path, say: Say, tally: Tally) -> None:
    """Play the part of the campaign that should catch each bug. Raises ChaosError when it doesn't, or something else does."""
    for name in names:
        bug = BUGS[name]
        found = _play_with(bug, seed, directory)
        if not re.search(bug.caught, found):
            what = f"something else was: {found[:600]}" if found else "all seemed to hold"
            raise ChaosError(
                f"the bug {name!r} was not caught; {what}\nrepeat: make chaos ARGS='--seed {seed} --bugs \"{name}\"'"
            )
        tally.bugs[name] = bug.catcher
        say(f"bug of ours: {name}: caught by {bug.catcher}: {found[:150]}")


def _play_with(bug: Bug, seed: int, directory: Path) -> str:
    """What did not hold; empty when all seemed to."""
    place = directory / f"bug-{bug.name.replace(' ', '-')}"
    place.mkdir()
    trial = next(trial for trial, _ in ACTS[bug.act].trials if trial.name == bug.trial)
    with contextmanager(ACTS[bug.act].setting)(place, seed, {"CHAOS_BUG": bug.name, "PYTHONPATH": SHIMMED}) as scene:
        try:
            scene.start()
            for number in range(BUG_TRIES):
                perform(scene, trial, random.Random(f"bug {seed} {number}"))
        except ChaosError as error:
            problems = scene.problems()
            return "; ".join(problems) if problems else str(error)
    return ""
