"""The daemon's side of the conversation with the job's torch elastic agent on this node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog

from ckptd.daemon.peer import Peer
from ckptd.daemon.ranks import from_pb
from ckptd.errors import ConfigError, ProtocolError
from ckptd.model.ids import NO_GENERATION, Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.messages.agents import Formed, Join, KvAdd, KvGet, KvSet, KvValue, Leave, World
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import Ok

if TYPE_CHECKING:
    from ckptd.daemon.job import Job

_log = structlog.get_logger(__name__)
_KEYS = 1 << 16


class Agent:
    """One connected agent. What it said holds until its process ends; a reconnected agent says it again."""

    def __init__(self, job: Job, peer: Peer) -> None:
        self._job = job
        self.peer = peer
        self.join: Join | None = None
        self.world: World | None = None
        self.left: Leave | None = None
        self._kv_generation = NO_GENERATION
        self._sets: dict[str, bytes] = {}
        self._totals: dict[str, int] = {}
        self._added: dict[int, str] = {}
        self._gets: dict[int, str] = {}

    @property
    def generation(self) -> Generation:
        """The generation that it is part of, as far as it has said."""
        return Generation(*self.world.generation) if self.world is not None else NO_GENERATION

    async def run(self) -> None:
        """Converse until the connection ends."""
        try:
            while (message := await self.peer.next()) is not None:
                self._handle(message)
        except ProtocolError as error:
            _log.error("agent_protocol", job=self._job.name, error=str(error))
        finally:
            self.peer.close()

    def _handle(self, message: Message) -> None:
        match message:
            case Join():
                self.join, self.world = message, None
                self._job.send(self._joined(message))
                self.refuse(self._job.refusal)
            case World():
                self.join, self.world = None, message
                self._job.bind_agent(message.world_key, self.generation)
                self._job.send(self._member(message))
            case Leave():
                self.left = message
                self._job.send(self.gone())
            case KvSet() | KvAdd() | KvGet():
                self._kv(message)
            case _:
                raise ProtocolError(f"an agent may not send {type(message).__name__}")

    def _kv(self, message: KvSet | KvAdd | KvGet) -> None:
        generation = Generation(*message.generation)
        if generation != self._kv_generation:
            self._kv_generation = generation
            self._sets, self._totals, self._added, self._gets = {}, {}, {}, {}
        if len(self._sets) + len(self._added) + len(self._gets) >= _KEYS:
            raise ProtocolError(f"more than {_KEYS} keys in the key-value space of one generation")
        match message:
            case KvSet():
                self._sets[message.key] = message.value
                self._job.send(self._set(message.key))
                self.peer.send(Ok(message.id))
            case KvAdd():
                if message.id not in self._added:  # a repeated request counts once
                    self._added[message.id] = message.key
                    self._totals[message.key] = self._totals.get(message.key, 0) + message.amount
                self._job.send(self._add(message.id))
            case KvGet():
                self._gets[message.id] = message.key
                self._job.send(self._get(message.id))

    def refuse(self, text: str) -> None:
        """The coordinator and this daemon can't work together, unless ``text`` is empty: who waits for a world is told."""
        if text and self.join is not None:
            self.peer.fail(self.join.id, ConfigError(text))

    def formed(self, message: pb.Formed) -> None:
        """The coordinator formed a generation with this node in it."""
        generation = from_pb(message.generation)
        if self.join is None or generation < self.generation:
            return
        pair = (generation.epoch, generation.n)
        self.peer.send(Formed(self.join.id, pair, message.node_rank, message.num_nodes))

    def kv_value(self, message: pb.KvValue) -> None:
        """An answer of the key-value space. A counter's comes once: its request is settled then."""
        key = self._gets.pop(message.id, None) if message.id in self._gets else self._added.get(message.id)
        if key is not None:
            self.peer.send(KvValue(message.id, message.value))

    def facts(self) -> Iterator[pb.FromNode]:
        """What the coordinator must know of this agent."""
        if self.world is not None:
            yield self._member(self.world)
        if self.join is not None:
            yield self._joined(self.join)
        if self.left is not None:
            yield self.gone()
        yield from (self._set(key) for key in self._sets)
        yield from (self._add(request) for request in self._added)
        yield from (self._get(request) for request in self._gets)

    def gone(self) -> pb.FromNode:
        """The message that it has left, or died."""
        failed, reason = (self.left.failed, self.left.reason) if self.left is not None else (True, "the agent's process died")
        return pb.FromNode(agent_gone=pb.AgentGone(agent=self.peer.process, failed=failed, reason=reason[:4096]))

    def _joined(self, join: Join) -> pb.FromNode:
        return pb.FromNode(
            join=pb.Join(
                agent=self.peer.process,
                local_world_size=join.local_world_size,
                min_nodes=join.min_nodes,
                max_nodes=join.max_nodes,
                after=pb.Generation(epoch=join.after[0], n=join.after[1]),
                failure=join.failure[:4096],
            )
        )

    def _member(self, world: World) -> pb.FromNode:
        return pb.FromNode(
            member=pb.Member(
                agent=self.peer.process,
                generation=self._generation(),
                node_rank=world.node_rank,
                num_nodes=world.num_nodes,
                local_world_size=world.local_world_size,
                min_nodes=world.min_nodes,
                max_nodes=world.max_nodes,
            )
        )

    def _generation(self) -> pb.Generation:
        return pb.Generation(epoch=self.generation.epoch, n=self.generation.n)

    def _kv_pb(self) -> pb.Generation:
        return pb.Generation(epoch=self._kv_generation.epoch, n=self._kv_generation.n)

    def _set(self, key: str) -> pb.FromNode:
        return pb.FromNode(kv_set=pb.KvSet(generation=self._kv_pb(), key=key, value=self._sets[key]))

    def _add(self, request: int) -> pb.FromNode:
        key = self._added[request]
        return pb.FromNode(
            kv_add=pb.KvAdd(id=request, generation=self._kv_pb(), key=key, total=self._totals[key], agent=self.peer.process)
        )

    def _get(self, request: int) -> pb.FromNode:
        return pb.FromNode(kv_get=pb.KvGet(id=request, generation=self._kv_pb(), key=self._gets[request]))
