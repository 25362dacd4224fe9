"""From SIGKILL of a node to its detection and to the first new step of the node that is left: the demo, several times."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.result import Result, from_rounds
from benchmarks.rounds import Rounds
from benchmarks.run import alone
from chaos.tools import ROOT
from ckptd.config import CoordinatorSettings
from ckptd.demo.story import Options, Report, Story, run_reference
from ckptd.store.open import open_store

_STEPS = 30
_EVERY = 5
_KILL_AFTER = 12
_PACE_SECONDS = 0.15


def measure(rounds: int) -> list[Result]:
    """The demo's model is small, so what is measured is waiting and starting, not reading."""
    top = Path(tempfile.mkdtemp(prefix="ckptd-bench-"))
    losses: dict[int, float] = {}
    kills = []
    for number in range(rounds):
        options = _options(top / f"{top.name}-{number}")
        losses = losses or run_reference(options)
        kills += _tell(options, losses).losses
    shutil.rmtree(top)
    settings = CoordinatorSettings()  # type: ignore[call-arg]
    notes = {
        "every_loss_as_undisturbed": True,
        "heartbeat_seconds": settings.heartbeat_seconds,
        "lease_seconds": settings.lease_seconds,
        "debounce_seconds": settings.debounce_seconds,
        "steps_lost": [kill.steps_lost for kill in kills],
    }
    detect = Rounds({}, {"ckptd": [kill.detect_seconds for kill in kills]})
    step = Rounds({}, {"ckptd": [kill.first_step_seconds for kill in kills]})
    return [
        from_rounds("recovery_detect", "seconds from SIGKILL of a node to detection", "s", detect, None, notes=notes),
        from_rounds("recovery", "seconds from SIGKILL of a node to the first new step", "s", step, None, notes=notes),
    ]


def _options(directory: Path) -> Options:
    """Nobody comes back; the name of the logs' parent is also that of the arenas, so each run has its own."""
    logs = directory / "logs"
    logs.mkdir(parents=True)
    script = ROOT / "examples" / "train_gpt.py"
    return Options(str(directory / "store"), script, logs, 2, _STEPS, _EVERY, _KILL_AFTER, _PACE_SECONDS, rejoin=False)


def _tell(options: Options, losses: dict[int, float]) -> Report:
    report = Story(options, open_store(options.store), print).tell(losses)
    if report.problems:
        raise RuntimeError(f"the demo did not hold; logs in {options.directory}: {report.problems}")
    return report


if __name__ == "__main__":
    alone(measure, rounds=3)
