"""The results as a table: on the screen, and as Markdown for docs/performance.md (`python -m benchmarks.table`)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import FIGURES
from benchmarks.result import OURS, RESULTS, Bar, Result, read

_HEAD = ("figure", "what", "unit", "ckptd", "limit", "peers", "÷ limit", "÷ best peer", "rounds", "bars")


def show(results: Sequence[Result]) -> None:
    """One table on the screen."""
    table = Table(*_HEAD, show_lines=True)
    for result in results:
        table.add_row(*_cells(result), style="red" if result.missed else "")
    Console(width=None if Console().is_terminal else 200).print(table)


def markdown(results: Sequence[Result]) -> str:
    """The same, to be pasted."""
    rows = [_HEAD, ("---",) * len(_HEAD)] + [_cells(result) for result in results]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def kept() -> list[Result]:
    """All that was saved, in the order of the figures."""

    def place(result: Result) -> tuple[int, str]:
        """A file may have several: `memory` has `memory_steady`."""
        return FIGURES.index(max((name for name in FIGURES if result.figure.startswith(name)), key=len)), result.figure

    return sorted((read(path) for path in RESULTS.glob("*.json")), key=place)


def _cells(result: Result) -> tuple[str, ...]:
    spread = result.raw.get(OURS, ())
    between = f" ({_text(min(spread))}–{_text(max(spread))})" if len(spread) > 1 else ""
    peers = "; ".join(f"{name} {_text(value)}" for name, value in result.peers.items()) or "-"
    ratios = (_text(result.ratio_to_limit), _text(result.ratio_to_best_peer))
    bars = "; ".join(map(_bar, result.bars)) or "-"
    ours = _text(result.ckptd) + between
    return (result.figure, result.what, result.unit, ours, _text(result.limit), peers, *ratios, str(result.rounds), bars)


def _bar(bar: Bar) -> str:
    return f"{bar.name} {bar.bound:g}: {_text(bar.value)}{'' if bar.holds else ' MISSED'}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _main() -> None:
    results = kept()
    print(markdown(results))
    for result in results:
        if result.first:
            first = ", ".join(f"{who} {_text(value)}" for who, value in result.first.items())
            print(f"\nFirst `{result.figure}`: {first} {result.unit}.")


if __name__ == "__main__":
    _main()
