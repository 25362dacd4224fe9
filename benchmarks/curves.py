"""How a cost grows: the exponent of its growth, and a picture of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]
_PICTURES = Path(__file__).resolve().parent.parent / "docs" / "curves"
_INCHES = (5.0, 3.4)
_DOTS_PER_INCH = 90


def exponent(points: Points) -> float:
    """k of the y = c·x^k that fits best: 1 is linear. Raises ValueError for fewer than two x, or what isn't above 0."""
    if any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError(f"a power law has positive numbers only points={list(points)}")
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    if len(set(xs)) < 2:
        raise ValueError(f"one place has no slope points={list(points)}")
    return statistics.linear_regression(xs, ys).slope


def draw(name: str, title: str, x: str, y: str, curves: Mapping[str, Points]) -> Path:
    """docs/curves/<name>.png, both axes logarithmic: a straight line is a power law, its slope the exponent in the legend."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=_INCHES, layout="constrained")
    for label, points in curves.items():
        xs, ys = zip(*sorted(points), strict=True)
        axes.loglog(xs, ys, marker="o", label=f"{label} (x^{exponent(points):.2f})")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    _PICTURES.mkdir(exist_ok=True)
    path = _PICTURES / f"{name}.png"
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)
    return path
