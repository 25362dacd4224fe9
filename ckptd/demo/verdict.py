"""What must hold after the demo, judged from what was seen from outside: pure functions over lines and log numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptd.demo.process import Line

TOLERANCE = 1e-4
_STEP = re.compile(r"step=(\d+) loss=(-?\d+\.\d+|nan|-?inf) world=(\d+)")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of training: a completed step, the loss over its global batch, and how many ranks made it."""

    seconds: float
    step: int
    loss: float
    world: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps of one world without a break; ``first.step`` - 1 is what was restored."""

    steps: tuple[Step, ...]

    @property
    def first(self) -> Step:
        """Its first step."""
        return self.steps[0]

    @property
    def last(self) -> Step:
        """Its last step."""
        return self.steps[-1]


def read_steps(lines: Sequence[Line]) -> list[Step]:
    """The training lines among all lines, in the order of their coming."""
    found = ((line, _STEP.search(line.text)) for line in lines)
    return [Step(line.seconds, int(match[1]), float(match[2]), int(match[3])) for line, match in found if match]


def stretches(steps: Sequence[Step]) -> list[Stretch]:
    """Cut where the step number does not go on by one, or the world changes."""
    cut: list[list[Step]] = []
    for step in steps:
        if cut and cut[-1][-1].step + 1 == step.step and cut[-1][-1].world == step.world:
            cut[-1].append(step)
        else:
            cut.append([step])
    return [Stretch(tuple(part)) for part in cut]


def wrong_losses(steps: Sequence[Step], reference: Mapping[int, float]) -> list[str]:
    """Steps whose loss is not that of the undisturbed run."""
    return [
        f"step {step.step} in a world of {step.world} had loss {step.loss:.6f}, undisturbed {reference.get(step.step)}"
        for step in steps
        if step.step not in reference or not abs(step.loss - reference[step.step]) <= TOLERANCE
    ]


def judge(steps: Sequence[Step], reference: Mapping[int, float], newest_committed: Sequence[int], total: int) -> list[str]:
    """All that does not hold; empty when the demo succeeded.

    ``newest_committed``: for each stretch after the first, the step of the newest commit that the log had when it began.
    """
    problems = wrong_losses(steps, reference)
    parts = stretches(steps)
    if len(parts) - 1 != len(newest_committed):
        problems.append(f"training was interrupted {len(parts) - 1} times, expected {len(newest_committed)}")
    for part, newest in zip(parts[1:], newest_committed, strict=False):
        if part.first.step - 1 != newest:
            problems.append(
                f"a world of {part.first.world} went on after step {part.first.step - 1}, the newest committed was {newest}"
            )
    if not parts or parts[-1].last.step != total:
        problems.append(f"training did not end at step {total}")
    return problems
