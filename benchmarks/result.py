"""One figure's outcome: medians, ratios, bars, and the machine it was measured on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.rounds import Rounds

RESULTS = Path(__file__).with_name("results")
OURS = "ckptd"
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What must hold: ``name`` says of what and in which direction."""

    name: str
    value: float
    bound: float
    holds: bool


def at_most(name: str, value: float, bound: float) -> Bar:
    """Not a number never holds."""
    return Bar(f"{name} ≤", value, bound, value <= bound)


def at_least(name: str, value: float, bound: float) -> Bar:
    """Not a number never holds."""
    return Bar(f"{name} ≥", value, bound, value >= bound)


def either(*bars: Bar) -> Bar:
    """One of them is enough. Shows the first that holds, else the first."""
    shown = next((bar for bar in bars if bar.holds), bars[0])
    others = [f"{bar.name} {bar.bound:g}" for bar in bars if bar is not shown]
    return replace(shown, name=f"({' or '.join(others)} or) {shown.name}")


@dataclass(frozen=True, slots=True)
class Result:
    """``limit`` is what the machine allows, ``peers`` what others reach: medians, in ``unit``, of which ``better`` is wanted.

    ``raw`` has every counted round, ``first`` the first save, which also makes what later ones use again.
    """

    figure: str
    what: str
    unit: str
    better: Better
    ckptd: float
    limit: float | None
    peers: Mapping[str, float]
    rounds: int
    bars: tuple[Bar, ...] = ()
    first: Mapping[str, float] = field(default_factory=dict)
    raw: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)

    @property
    def ratio_to_limit(self) -> float | None:
        """ckptd's value over the limit's; None where there is no limit to compare with."""
        return self.ckptd / self.limit if self.limit else None

    @property
    def ratio_to_best_peer(self) -> float | None:
        """ckptd's value over that of the best peer, the highest or the lowest; None without peers."""
        if not self.peers:
            return None
        return self.ckptd / (min if self.better == "lower" else max)(self.peers.values())

    @property
    def missed(self) -> list[Bar]:
        """The bars that don't hold."""
        return [bar for bar in self.bars if not bar.holds]

    def holding(self, *bars: Bar) -> Result:
        """The same with these bars."""
        return replace(self, bars=bars)

    def save(self, directory: Path = RESULTS) -> Path:
        """Write <figure>.json. Raises ValueError for a value that is not a finite number."""
        directory.mkdir(exist_ok=True)
        path = directory / f"{self.figure}.json"
        ratios = {"ratio_to_limit": self.ratio_to_limit, "ratio_to_best_peer": self.ratio_to_best_peer}
        path.write_text(json.dumps(_rounded({**asdict(self), **ratios}), indent=1, allow_nan=False) + "\n")
        return path


def read(path: Path) -> Result:
    """What `save` wrote."""
    values = json.loads(path.read_text())
    del values["ratio_to_limit"], values["ratio_to_best_peer"]
    return Result(**{**values, "bars": tuple(Bar(**bar) for bar in values["bars"])})


def from_rounds(
    figure: str,
    what: str,
    unit: str,
    rounds: Rounds,
    limit: str | float | None,
    *,
    better: Better = "lower",
    notes: Mapping[str, object] | None = None,
) -> Result:
    """Medians of interleaved rounds, among them `OURS`. ``limit`` names the contender that is the limit, or is its value."""
    medians = {name: statistics.median(values) for name, values in rounds.raw.items()}
    bound = medians[limit] if isinstance(limit, str) else limit
    peers = {name: value for name, value in medians.items() if name not in (OURS, limit)}
    count = min(len(values) for values in rounds.raw.values())
    return Result(
        figure, what, unit, better, medians[OURS], bound, peers, count, first=rounds.first, raw=rounds.raw, notes=notes or {}
    )


def _rounded(value: object) -> object:
    """Four digits are more than these figures hold."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
