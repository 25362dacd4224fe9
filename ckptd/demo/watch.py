"""What the demo's live view shows, gathered from what its parts say; making a picture of it is pure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ckptd.demo.process import Line, Output
from ckptd.demo.verdict import Step, read_steps
from ckptd.rpc.v1 import coordinator_pb2 as pb

_LOOK_SECONDS = 0.4
_SAVED = 6
_STORY = 40


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node as the coordinator has it; ``ranks`` is empty when it trains nothing."""

    name: str
    state: str
    ranks: tuple[int, ...]
    step: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint: the slowest node's way from staged to durable, and the longest that training stood still for it."""

    step: int
    durable_seconds: float
    stall_seconds: float
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    seconds: float
    phase: str = "starting"
    world: str = ""
    last: Step | None = None
    total_steps: int = 0
    on_its_way: str = ""
    nodes: tuple[NodeRow, ...] = ()
    saved: tuple[Saved, ...] = ()
    story: tuple[str, ...] = ()


def node_rows(names: Sequence[str], reply: pb.StatusReply | None) -> tuple[NodeRow, ...]:
    """All nodes in the order of their names; "off" before the coordinator has heard of one."""
    known = {} if reply is None else {node.node: node for node in reply.nodes}
    return tuple(
        NodeRow(name, known[name].state, tuple(known[name].ranks), known[name].step)
        if name in known
        else NodeRow(name, "off", (), 0)
        for name in names
    )


def newest_saved(reply: pb.StatusReply) -> Saved | None:
    """The newest checkpoint that any node reports as durable."""
    newest = [node.report.newest for node in reply.nodes if node.report.HasField("newest")]
    step = max((durable.step for durable in newest), default=0)
    parts = [durable for durable in newest if durable.step == step]
    if not parts:
        return None
    slowest = max(part.staged_to_durable_seconds for part in parts)
    return Saved(step, slowest, max(part.stall_seconds for part in parts), sum(part.bytes for part in parts))


def reason_of(event: dict[str, object]) -> str:
    """Why the coordinator did what this line of its log says."""
    if "reason" in event:
        return str(event["reason"])
    return str(event.get("detail", "")).rpartition("reason=")[2].rstrip(")").strip("'\"")


def ended_world(lines: Iterable[Line], after_seconds: float) -> tuple[float, str] | None:
    """When the coordinator first ended a world after ``after_seconds``, and why; None when it has not.

    As a rule a survivor's worker fails at once; where its collective hangs instead, the silence of the lost node is what shows.
    """
    for line in lines:
        event = line.event if line.source == "coordinator" and line.seconds > after_seconds else {}
        if event.get("event") == "regroup" or event.get("action") == "DeclareDead":
            return line.seconds, reason_of(event)
    return None


def in_words(event: dict[str, object]) -> str | None:
    """What a line of the coordinator means to who watches; None when nothing."""
    detail = str(event.get("detail", ""))
    if event.get("event") == "regroup":
        return f"  coordinator: workers stop, {reason_of(event)}"
    if event.get("action") in ("DeclareDead", "FormGeneration"):
        return f"  coordinator: {'a world of ' if event['action'] == 'FormGeneration' else ''}{reason_of(event)}"
    if event.get("action") == "NameRestore" and "seq=None" not in detail:
        step = detail.partition("step=")[2].partition(",")[0]
        return f"  coordinator: all ranks restore step {step}, cut anew for this world"
    return None


@dataclass
class Watcher:
    """Follows the output and asks the coordinator, in a thread of its own, until the block ends.

    ``ask`` gives the coordinator's word on the job, None while there is none.
    """

    names: Sequence[str]
    total_steps: int
    output: Output
    ask: Callable[[], pb.StatusReply | None]
    now: Callable[[], float]
    _story: deque[str] = field(default_factory=lambda: deque(maxlen=_STORY))
    _saved: dict[int, Saved] = field(default_factory=dict)
    _reply: pb.StatusReply | None = None
    _last: Step | None = None
    _read: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:
        threading.Thread(target=self._follow, name="demo-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def say(self, text: str) -> None:
        """A line of the story."""
        with self._lock:
            self._story.append(f"[{self.now():6.1f} s] {text}")

    def _follow(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            reply = self.ask()
            with self._lock:
                self._note(reply)

    def _note(self, reply: pb.StatusReply | None) -> None:
        if reply is None:
            return
        self._reply = reply
        if (saved := newest_saved(reply)) is not None:
            before = self._saved.get(saved.step)  # nodes hear of one commit one after the other
            self._saved[saved.step] = max(before, saved, key=lambda one: one.raw_bytes) if before else saved
            for step in sorted(self._saved)[:-_SAVED]:
                del self._saved[step]

    def _hear(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if line.source == "coordinator" and (words := in_words(line.event)) is not None:
                self._story.append(words)

    def picture(self) -> Picture:
        """This moment's."""
        with self._lock:
            lines = self.output.since(self._read)
            self._read += len(lines)
            self._hear(lines)
            self._last = next(iter(reversed(read_steps(lines))), self._last)
            reply = self._reply
            world, coming = "", ""
            if reply is not None and reply.HasField("world"):
                generation = reply.world.generation
                world = f"generation {generation.epoch}-{generation.n}, {reply.world.world_size} ranks"
            if reply is not None:
                ways = (f"step {s.step}: {s.sealed} staged, {s.uploaded} uploaded" for s in reply.snapshots)
                coming = "; ".join(ways)
            return Picture(
                seconds=self.now(),
                phase=reply.phase if reply is not None else "starting",
                world=world,
                last=self._last,
                total_steps=self.total_steps,
                on_its_way=coming,
                nodes=node_rows(self.names, reply),
                saved=tuple(self._saved[step] for step in sorted(self._saved)),
                story=tuple(self._story),
            )
