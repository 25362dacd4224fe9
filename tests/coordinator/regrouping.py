"""What a broken world does next: its agents join again, and its ranks ask what to restore and report."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench, FakeNode


def regroup(bench: Bench, *nodes: FakeNode) -> Generation:
    """All agents join again; their ranks come up not ready, and ask."""
    for node in nodes:
        node.join()
    generation = bench.generation
    for rank, node in enumerate(nodes):
        node.member(generation, rank, len(nodes))
        node.rank_up(generation, rank, len(nodes), process=f"{node.name}-{generation}", ready=False)
        node.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))
    return generation


def report(node: FakeNode, generation: Generation, rank: int, error: str = "", corrupt: bool = False) -> None:
    node.say(restore_report=pb.RestoreReport(generation=to_generation(generation), rank=rank, error=error, corrupt=corrupt))
