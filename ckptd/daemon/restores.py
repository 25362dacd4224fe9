"""Restores: one target for all ranks of a generation, and the delivery of what each rank wants (PROTOCOLS 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ckptd.daemon.node import Node
from ckptd.daemon.ranks import from_pb
from ckptd.daemon.together import Share, Together
from ckptd.errors import CkptdError, RestoreError
from ckptd.model.ids import Generation
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.rpc.v1 import coordinator_pb2 as pb

Awaited = Callable[[], set[int]]


@dataclass(slots=True)
class Target:
    """What one generation restores, and how it ended."""

    message: pb.RestoreTarget | None = None
    outcome: str | None = None  # "" once all ranks have verified their parts, else why not
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Restores:
    """All restores of one job on this node."""

    def __init__(self, job: str, node: Node) -> None:
        self._job = job
        self._node = node
        self._targets: dict[Generation, Target] = {}
        self._checkpoint: tuple[str, asyncio.Task[Checkpoint]] | None = None
        self._gathering: dict[Generation, Together] = {}  # whose ranks are still awaited

    def _of(self, generation: Generation) -> Target:
        for older in [known for known in self._targets if known < generation]:
            del self._targets[older]
        return self._targets.setdefault(generation, Target())

    async def targeted(self, message: pb.RestoreTarget) -> None:
        """The coordinator named the checkpoint."""
        target = self._of(from_pb(message.generation))
        async with target.changed:
            target.message = message
            target.changed.notify_all()

    async def ended(self, generation: Generation, outcome: str) -> None:
        """All ranks have it ("") or the restore failed (why)."""
        target = self._of(generation)
        async with target.changed:
            target.outcome = target.outcome or outcome
            target.changed.notify_all()

    async def target(self, generation: Generation) -> pb.RestoreTarget:
        """Wait for the target. Raises RestoreError when there will be none. The trainer bounds the wait."""
        target = self._of(generation)
        async with target.changed:
            await target.changed.wait_for(lambda: target.message is not None or target.outcome)
        if target.message is None:
            raise RestoreError(f"nothing can be restored: {target.outcome}")
        return target.message

    async def outcome(self, generation: Generation) -> None:
        """Wait until every rank has reported. Raises RestoreError when one couldn't. The trainer bounds the wait."""
        target = self._of(generation)
        async with target.changed:
            await target.changed.wait_for(lambda: target.outcome is not None)
        if target.outcome:
            raise RestoreError(f"no rank restores, because not all of them can: {target.outcome}")

    async def checkpoint(self, manifest: str) -> Checkpoint:
        """The checkpoint behind a manifest's hash; opened once for all ranks of the node."""
        if self._checkpoint is None or self._checkpoint[0] != manifest or _failed(self._checkpoint[1]):
            opening = asyncio.create_task(open_checkpoint(self._node.read_store, self._job, manifest))
            self._checkpoint = (manifest, opening)
        return await asyncio.shield(self._checkpoint[1])

    async def deliver(self, generation: Generation, checkpoint: Checkpoint, share: Share, awaited: Awaited) -> None:
        """Fetch, verify and hand over every byte that a rank wants, together with the other ranks of this node.

        ``awaited`` says which ranks of the generation may still ask. Raises what planning and fetching raise.
        """
        together = self._gathering.get(generation)
        if together is None:
            together = self._gathering[generation] = Together(self._node, checkpoint, awaited, self._begun)
        await together.deliver(share)

    def _begun(self, together: Together) -> None:
        self._gathering = {key: other for key, other in self._gathering.items() if other is not together}

    def look(self, generation: Generation) -> None:
        """A rank has reported, or is gone: those that wait for it need not."""
        if generation in self._gathering:
            self._gathering[generation].look()


def _failed(task: asyncio.Task[Checkpoint]) -> bool:
    return task.done() and (task.cancelled() or isinstance(task.exception(), CkptdError))
