"""One figure's outcome: medians, ratios, and the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Result:
    """``limit`` is what the machine allows, ``peers`` what others need; ``first`` and ``raw`` are single values, no medians.

    A ratio is ckptd's value over the other's. ``bars`` stays empty until a figure has a bar to hold.
    """

    figure: str
    what: str
    unit: str
    ckptd: float
    limit: float | None
    peers: Mapping[str, float]
    rounds: int
    machine: Mapping[str, object]
    first: Mapping[str, float] = field(default_factory=dict)
    raw: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    bars: Sequence[Mapping[str, object]] = ()

    @property
    def ratio_to_limit(self) -> float | None:
        """None where there is no limit to compare with."""
        return self.ckptd / self.limit if self.limit else None

    @property
    def ratio_to_best_peer(self) -> float | None:
        """None without peers."""
        return self.ckptd / min(self.peers.values()) if self.peers else None

    def save(self, directory: Path = RESULTS) -> Path:
        """Write <figure>.json."""
        directory.mkdir(exist_ok=True)
        path = directory / f"{self.figure}.json"
        ratios = {"ratio_to_limit": self.ratio_to_limit, "ratio_to_best_peer": self.ratio_to_best_peer}
        path.write_text(json.dumps(_rounded({**asdict(self), **ratios}), indent=1) + "\n")
        return path


def from_rounds(
    figure: str,
    what: str,
    unit: str,
    raw: Mapping[str, Sequence[float]],
    limit: str | float | None,
    *,
    first: Mapping[str, float] | None = None,
    notes: Mapping[str, object] | None = None,
    load: float,
) -> Result:
    """Medians of interleaved rounds. ``limit`` names the contender that is the limit, or is its value."""
    medians = {name: statistics.median(values) for name, values in raw.items()}
    found = medians[limit] if isinstance(limit, str) else limit
    peers = {name: value for name, value in medians.items() if name not in ("ckptd", limit)}
    rounds = min(len(values) for values in raw.values())
    return Result(figure, what, unit, medians["ckptd"], found, peers, rounds, machine(load), first or {}, raw, notes or {})


def machine(load: float) -> dict[str, object]:
    """What it ran on. ``load`` is the load average before it began: other people's work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_average_before": load,
    }


def table(results: Sequence[Result]) -> str:
    """All results as text."""
    rows = [("figure", "unit", "ckptd", "limit", "peers", "÷ limit", "÷ best peer", "rounds")]
    for result in results:
        peers = ", ".join(f"{name} {_text(value)}" for name, value in result.peers.items())
        ratios = (_text(result.ratio_to_limit), _text(result.ratio_to_best_peer))
        rows.append(
            (result.figure, result.unit, _text(result.ckptd), _text(result.limit), peers or "-", *ratios, str(result.rounds))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _rounded(value: object) -> object:
    """Four digits are more than these figures hold."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
