"""Which samples were trained on, and which of that counts: kept by the trainers themselves, judged without ckptd's data code.

Each rank of each generation writes a file of its own: ``restored=<step> world=<ranks>``, then one line per completed step, its
number and the samples whose gradients went into it. What a generation did beyond the step that the next one restored is void:
the weights that learned from it are gone. What is left must be each sample exactly once per pass over the data, in any order.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NUM_SAMPLES: Final = 997  # a prime: passes over the data end within a global batch
GLOBAL_BATCH: Final = 24
LEDGER: Final = "CHAOS_LEDGER"  # the variable that names the directory to the trainers
_NAME = re.compile(r"(\d+)-(\d+)\.(\d+)")
_FIRST = re.compile(r"restored=(\d+) world=(\d+)")

Generation = tuple[int, int]


class Book:
    """One rank's file, written line by line: each is in the kernel's hands, safe from SIGKILL, when ``trained`` returns."""

    def __init__(self, directory: str | None, generation: Generation, rank: int, world: int, restored: int) -> None:
        """Raises FileExistsError when another process was this rank of this generation. Without a directory: no book."""
        path = Path(directory) / f"{generation[0]}-{generation[1]}.{rank}" if directory else Path(os.devnull)
        self._file = path.open("xb" if directory else "wb", buffering=0)
        self._file.write(f"restored={restored} world={world}\n".encode())

    def trained(self, step: int, samples: Sequence[int]) -> None:
        """The optimizer's step ``step`` is done, and these samples were this rank's part of it."""
        self._file.write(f"{step} {' '.join(map(str, samples))}\n".encode())


@dataclass(frozen=True, slots=True)
class Page:
    """What one rank of one generation wrote."""

    generation: Generation
    rank: int
    world: int
    restored: int
    steps: Mapping[int, tuple[int, ...]]


@dataclass(slots=True)
class History:
    """The steps that count: step → rank → samples, and the number of ranks that had to take part. ``void``: redone steps."""

    steps: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    worlds: dict[int, int] = field(default_factory=dict)
    void: int = 0
    problems: list[str] = field(default_factory=list)


def read(directory: Path) -> list[Page]:
    """All ranks' pages. Raises ValueError for a file that no rank would write."""
    pages = []
    for path in sorted(directory.iterdir()):
        name = _NAME.fullmatch(path.name)
        *lines, torn = path.read_text().split("\n")  # a line without its end was being written when its rank died
        first = _FIRST.fullmatch(lines[0]) if lines else None
        if name is None or (lines and first is None):
            raise ValueError(f"no page of a ledger: {path} begins with {(lines or [torn])[0]!r:.80}")
        if first is None:
            continue
        steps: dict[int, tuple[int, ...]] = {}
        for line in lines[1:]:
            step, *samples = map(int, line.split())
            if step in steps:
                raise ValueError(f"{path} has step {step} twice")
            steps[step] = tuple(samples)
        pages.append(Page((int(name[1]), int(name[2])), int(name[3]), int(first[2]), int(first[1]), steps))
    return pages


def surviving(pages: Sequence[Page]) -> History:
    """What is left of all that was trained. Pure."""
    history = History()
    for generation in sorted({page.generation for page in pages}):
        own = [page for page in pages if page.generation == generation]
        if len({(page.restored, page.world) for page in own}) > 1:
            history.problems.append(f"the ranks of generation {generation} disagree on what they restored: {own}"[:300])
        restored, world = own[0].restored, own[0].world
        for step in [step for step in history.steps if step > restored]:
            del history.steps[step]
            history.void += 1
        for page in own:
            for step, samples in page.steps.items():
                history.steps.setdefault(step, {})[page.rank] = samples
                history.worlds[step] = world
        if restored and restored not in history.steps:
            history.problems.append(f"generation {generation} restored step {restored}, which nobody had trained")
    return history


def judge(history: History, last_step: int, num_samples: int = NUM_SAMPLES, global_batch: int = GLOBAL_BATCH) -> list[str]:
    """All that does not hold; empty when each sample was seen exactly once per pass over the data. Pure."""
    problems = list(history.problems)
    if sorted(history.steps) != list(range(1, last_step + 1)):
        problems.append(f"the steps that count are not 1 to {last_step}: {_gaps(sorted(history.steps), last_step)}")
    seen: Counter[int] = Counter()
    for number, (step, ranks) in enumerate(sorted(history.steps.items()), 1):
        world = history.worlds[step]
        if sorted(ranks) != list(range(world)):
            problems.append(f"step {step} was trained by ranks {sorted(ranks)} of {world}")
        samples = [sample for part in ranks.values() for sample in part]
        if len(samples) != global_batch:
            problems.append(f"step {step} had {len(samples)} samples, not {global_batch}")
        seen.update(samples)
        # After so many samples every one was seen this often, or once more: any other count is one twice or one skipped.
        passes, over = divmod(number * global_batch, num_samples)
        allowed = {passes, passes + 1} if over else {passes}
        wrong = [sample for sample in range(num_samples) if seen[sample] not in allowed]
        strange = [sample for sample in samples if not 0 <= sample < num_samples]
        if wrong or strange:
            problems.append(f"after step {step} samples {(wrong or strange)[:5]} were not seen {passes} to {passes + 1} times")
            break  # the counts stay wrong from here on
    return problems


def _gaps(steps: Sequence[int], last_step: int) -> str:
    missing, beyond = sorted(set(range(1, last_step + 1)) - set(steps)), [step for step in steps if step > last_step]
    return f"missing {missing[:5]}, beyond the end {beyond[:5]}"
