"""The results as a table: on the screen, and in docs/performance.md (`python -m benchmarks.table`): no figure is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import FIGURES
from benchmarks.result import OURS, RESULTS, Bar, Result, read

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
_BEGIN, _END = "<!-- from benchmarks/results by `python -m benchmarks.table` -->", "<!-- end -->"
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


def document(results: Sequence[Result]) -> str:
    """All of it as docs/performance.md has it: the table, the first saves, the machine and how quiet it was."""
    firsts = [f"`{result.figure}` {_firsts(result)} {result.unit}" for result in results if result.first]
    machine = results[0].machine
    busy = ", ".join(f"{result.figure} {_text(float(str(result.machine['busy_cores_before'])))}" for result in results)
    kind = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}"
    parts = [f"{kind}. Cores that others kept busy just before: {busy}.", markdown(results)]
    return "\n\n".join(parts + ([f"First rounds: {'; '.join(firsts)}."] if firsts else []))


def replaced(text: str, part: str) -> str:
    """``text`` with ``part`` between its two marks. Raises ValueError without them."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"no {_BEGIN} … {_END} to write between")
    return f"{before}{begin}\n{part}\n{end}{after}"


def _firsts(result: Result) -> str:
    return ", ".join(f"{who} {_text(value)}" for who, value in result.first.items())


if __name__ == "__main__":
    _DOCUMENT.write_text(replaced(_DOCUMENT.read_text(), document(kept())))
