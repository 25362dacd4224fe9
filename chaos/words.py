"""What the processes of a job say, read once each as it comes: steps, restores, offers, acknowledgements."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from chaos.invariants import Acknowledged, Offer, Restored
from ckptd.demo.process import Line, Output
from ckptd.demo.verdict import Step, read_steps

_RESTORED = re.compile(r"restored rank=(\d+) step=(\d+) world=(\d+) generation=(\d+)-(\d+) pid=(\d+)")
_OFFER = re.compile(r"NameRestore\(target=Target\(seq=(\d+), step=(\d+), manifest='(\w+)'\), loss=.*\)")
_TOLD = re.compile(r"durable rank=\d+ step=(\d+) seq=(\d+) generation=(\d+)-(\d+)")
_DAEMON = re.compile(r'"snapshot": "(\d+)-(\d+)\.(\d+)", "seq": (\d+), "event": "durable"')


@dataclass(frozen=True, slots=True)
class Living:
    """A rank that has restored: the node that it is on, and its process."""

    source: str
    pid: int


@dataclass(slots=True)
class Words:
    """Everything that was said so far, by kind, in the order of its coming.

    Each line is read once: a long campaign prints too much to read all of it at every look.
    """

    output: Output
    steps: list[Step] = field(default_factory=list)
    restored: list[Restored] = field(default_factory=list)
    living: list[Living] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    events: list[tuple[float, dict[str, object]]] = field(default_factory=list)  # the coordinators' structured lines
    _read: int = 0

    def refresh(self) -> None:
        """Read on."""
        fresh = self.output.since(self._read)
        self._read += len(fresh)
        self.steps += read_steps(fresh)
        for line in fresh:
            self._take(line)

    def _take(self, line: Line) -> None:
        if line.source == "coordinator" and (event := line.event):
            self.events.append((line.seconds, event))
        if found := _RESTORED.search(line.text):
            rank, step, world, epoch, n, pid = (int(part) for part in found.groups())
            self.restored.append(Restored(rank, step, world, (epoch, n)))
            self.living.append(Living(line.source, pid))
        elif found := _OFFER.search(line.text):
            self.offers.append(Offer(int(found[1]), int(found[2]), found[3]))
        elif found := _TOLD.search(line.text):
            step, seq, epoch, n = (int(part) for part in found.groups())
            self.acknowledged.append(Acknowledged(seq, step, (epoch, n)))
        elif found := _DAEMON.search(line.text):
            epoch, n, step, seq = (int(part) for part in found.groups())
            self.acknowledged.append(Acknowledged(seq, step, (epoch, n)))
        elif line.text.startswith("WRONG"):
            self.wrong.append(line.text)
