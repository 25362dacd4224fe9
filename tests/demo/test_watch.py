"""What the demo's live view makes of what its parts say."""

from __future__ import annotations

import io

from rich.console import Console

from ckptd.demo.process import Line
from ckptd.demo.verdict import Step
from ckptd.demo.view import draw
from ckptd.demo.watch import NodeRow, Picture, Saved, ended_world, in_words, newest_saved, node_rows
from ckptd.rpc.v1 import coordinator_pb2 as pb


def durable(step: int, staged_to_durable: float, stall: float, size: int) -> pb.NodeReport:
    newest = pb.Durable(step=step, bytes=size, staged_to_durable_seconds=staged_to_durable, stall_seconds=stall)
    return pb.NodeReport(newest=newest)


REPLY = pb.StatusReply(
    nodes=[
        pb.NodeStatus(node="a", state="alive", ranks=[0], step=41, report=durable(40, 0.2, 0.004, 100)),
        pb.NodeStatus(node="c", state="alive", ranks=[1], step=41, report=durable(40, 0.3, 0.002, 120)),
        pb.NodeStatus(node="b", state="lost", report=durable(35, 9.0, 9.0, 90)),
    ]
)


def test_nodes_come_in_their_order_those_unheard_of_too() -> None:
    assert node_rows("abc", REPLY) == (
        NodeRow("a", "alive", (0,), 41),
        NodeRow("b", "lost", (), 0),
        NodeRow("c", "alive", (1,), 41),
    )
    assert node_rows("a", None) == (NodeRow("a", "off", (), 0),)


def test_a_checkpoint_is_as_slow_as_its_slowest_node() -> None:
    assert newest_saved(REPLY) == Saved(40, 0.3, 0.004, 220)
    assert newest_saved(pb.StatusReply(nodes=[pb.NodeStatus(node="a")])) is None


def test_what_the_coordinator_decides_in_words() -> None:
    lines = (
        '{"event": "regroup", "reason": "the workers of node a have stopped"}',
        '{"event": "decided", "action": "DeclareDead", "detail": "DeclareDead(node=\'b\', reason=\'node b is silent\')"}',
        '{"event": "decided", "action": "FormGeneration", "detail": "FormGeneration(members=(\'a\'), reason=\'1 nodes: a\')"}',
        '{"event": "decided", "action": "NameRestore", "detail": "NameRestore(target=Target(seq=7, step=40, manifest=0))"}',
        '{"event": "decided", "action": "NameRestore", "detail": "NameRestore(target=Target(seq=None, step=0, manifest=0))"}',
        "no event at all",
    )
    assert [in_words(Line(0.0, "coordinator", line).event) for line in lines] == [
        "  coordinator: workers stop, the workers of node a have stopped",
        "  coordinator: node b is silent",
        "  coordinator: a world of 1 nodes: a",
        "  coordinator: all ranks restore step 40, cut anew for this world",
        None,
        None,
    ]


def test_a_world_ends_when_workers_fail_or_when_all_that_shows_is_silence() -> None:
    old = Line(1.0, "coordinator", '{"event": "regroup", "reason": "before the kill"}')
    dead = Line(5.0, "coordinator", '{"action": "DeclareDead", "detail": "DeclareDead(node=\'b\', reason=\'b is silent\')"}')
    failed = Line(4.0, "coordinator", '{"event": "regroup", "reason": "workers have stopped"}')
    assert ended_world([old, dead], 2.0) == (5.0, "b is silent")
    assert ended_world([old, failed, dead], 2.0) == (4.0, "workers have stopped")
    assert ended_world([old], 2.0) is None


def test_the_picture_shows_all_of_it() -> None:
    picture = Picture(
        seconds=12.3,
        phase="training",
        world="generation 1-2, 2 ranks",
        last=Step(0.0, 41, 5.4321, 2),
        total_steps=300,
        on_its_way="step 45: 2 staged, 1 uploaded",
        nodes=node_rows("abcd", REPLY),
        saved=(Saved(40, 0.3, 0.004, 220_000),),
        story=("[  10.0 s] node b killed",),
    )
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(draw(picture, 30))
    text = console.export_text()
    for shown in (
        "training",
        "step 41 of 300",
        "5.4321",
        "lost",
        "off",
        "0.30 s",
        "4.0 ms",
        "220.0 kB",
        "1 uploaded",
        "node b killed",
    ):
        assert shown in text, (shown, text)
