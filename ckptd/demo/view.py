"""A picture of the demo as rich draws it. Pure."""

from __future__ import annotations

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ckptd.demo.watch import Picture

_OTHER_LINES = 16
_STYLES = {
    "alive": "green",
    "waiting": "yellow",
    "spare": "yellow",
    "regrouping": "yellow",
    "blind": "yellow",
    "silent": "bold red",
    "lost": "bold red",
    "left": "dim",
    "off": "dim",
}


def draw(picture: Picture, height: int) -> RenderableType:
    """The whole view: a headline, nodes beside checkpoints, and as much of the story as fits into ``height`` lines."""
    lines = max(3, height - _OTHER_LINES)
    story = Text("\n".join(picture.story[-lines:]) or "…", overflow="ellipsis", no_wrap=True)
    return Group(
        _headline(picture),
        Columns([_nodes(picture), _saved(picture)]),
        Panel(story, title="what happens", title_align="left"),
    )


def _headline(picture: Picture) -> Text:
    words = [f"{picture.seconds:6.1f} s", picture.phase, picture.world]
    if picture.last is not None:
        words.append(f"step {picture.last.step} of {picture.total_steps}, loss {picture.last.loss:.4f}")
    return Text("   ".join(word for word in words if word), style="bold", no_wrap=True)


def _nodes(picture: Picture) -> Table:
    table = Table("node", "state", "rank", "step", title="nodes", title_justify="left", min_width=36)
    for node in picture.nodes:
        ranks = ", ".join(map(str, node.ranks))
        table.add_row(node.name, Text(node.state, _STYLES.get(node.state, "")), ranks, str(node.step) if node.ranks else "")
    return table


def _saved(picture: Picture) -> Table:
    table = Table("step", "staged → durable", "stall", "size", title="newest checkpoints", title_justify="left", min_width=48)
    for one in picture.saved:
        table.add_row(
            str(one.step), f"{one.durable_seconds:.2f} s", f"{1000 * one.stall_seconds:.1f} ms", decimal(one.raw_bytes)
        )
    table.caption = f"on its way: {picture.on_its_way}" if picture.on_its_way else " "
    return table
