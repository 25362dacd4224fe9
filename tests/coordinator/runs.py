"""Runs of one job, one after the other."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench, FakeNode

G11, G12, G13, G21, G22 = Generation(1, 1), Generation(1, 2), Generation(1, 3), Generation(2, 1), Generation(2, 2)


def gone(node: FakeNode, agent: str = "", failed: bool = False) -> None:
    node.say(agent_gone=pb.AgentGone(agent=agent or f"{node.name}-agent", failed=failed, reason="done"))


def phase(bench: Bench) -> str:
    return bench.engine.status("job").phase


def alone(bench: Bench, agent: str, total: int = 100) -> tuple[FakeNode, Generation]:
    """A whole run on node a, from join to end, with a commit of its last step."""
    a = bench.nodes.get("a") or bench.node("a")
    a.join(most=1, agent=agent)
    generation = bench.generation
    assert bench.running and not bench.engine.state.over and phase(bench) != "complete"
    a.say(member=pb.Member(agent=agent, generation=to_generation(generation), num_nodes=1, local_world_size=1))
    newest = bench.engine.state.candidate.seq
    a.rank_up(generation, 0, 1, base=0 if newest is None else newest + 1)
    bench.commit(total, (a, 0))
    a.finished(generation, 0)
    assert a.told("complete")[-1].agent == agent and phase(bench) == "complete"
    gone(a, agent)
    return a, generation


def finished(bench: Bench) -> tuple[FakeNode, FakeNode]:
    """A run of two nodes is complete, all have heard of it, and both agents have ended."""
    a, b, generation = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    for rank, node in enumerate((a, b)):
        node.finished(generation, rank)
    for node in (a, b):
        assert node.told("complete")
        gone(node)
    return a, b


def cut_off(bench: Bench) -> tuple[FakeNode, FakeNode, Generation]:
    """Node a finishes while nothing is heard of node b: the job is complete, and node b doesn't know."""
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    gone(a)
    assert bench.engine.state.over
    return a, b, generation


def late(bench: Bench) -> tuple[FakeNode, FakeNode]:
    """As `cut_off`; then node b comes back with a new daemon and a new launcher."""
    a, b, _ = cut_off(bench)
    b.incarnation = "b-2"
    b.connect()
    b.join(least=2, most=2, agent="b2")
    return a, b
