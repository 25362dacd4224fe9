"""Rounds in which all contenders take their turn, so that what disturbs the machine disturbs each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 2  # the first save makes the arena, the second uses its other slot for the first time


@dataclass(frozen=True, slots=True)
class Rounds:
    """Values by contender: of each counted round, and of the very first one, which isn't counted."""

    first: Mapping[str, float]
    raw: Mapping[str, Sequence[float]]

    def map(self, change: Callable[[float], float]) -> Rounds:
        """Every value changed: seconds to GB/s, for one."""
        return Rounds(
            {name: change(value) for name, value in self.first.items()},
            {name: [change(value) for value in values] for name, values in self.raw.items()},
        )

    def only(self, *names: str) -> Rounds:
        """Those of some contenders."""
        return Rounds({name: self.first[name] for name in names}, {name: self.raw[name] for name in names})


def interleave(
    contenders: Mapping[str, Callable[[int], float]],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    between: Callable[[], None] | None = None,
) -> Rounds:
    """In each round every contender once, in an order that rotates; ``rounds`` are counted after ``warm_up`` (at least 1).

    A contender gets the number of the round, from 0, and returns its value. ``between`` runs before each of them.
    """
    if warm_up < 1 or rounds < 1:
        raise ValueError(f"a round to warm up and one to count, at least warm_up={warm_up} rounds={rounds}")
    values: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if between is not None:
                between()
            values[name].append(contenders[name](number))
    return Rounds({name: found[0] for name, found in values.items()}, {name: found[warm_up:] for name, found in values.items()})


def slowest(ranks: Sequence[Rounds]) -> Rounds:
    """Per round the value of the rank that needed longest: the others wait for it."""
    names = ranks[0].raw
    return Rounds(
        {name: max(rank.first[name] for rank in ranks) for name in names},
        {name: [max(values) for values in zip(*(rank.raw[name] for rank in ranks), strict=True)] for name in names},
    )
