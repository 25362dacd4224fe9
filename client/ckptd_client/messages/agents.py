"""Between a node's agent and its daemon: the generations of a job, and the key-value space of each."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd_client.messages.hello import Gen


@dataclass(frozen=True, slots=True)
class Join:
    """This node's agent offers ``local_world_size`` workers to the next generation; ``after`` is the last one it was in.

    ``failure`` says which of its workers failed there, the first first, and how; empty when none did.
    """

    id: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    after: Gen
    failure: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why no generation is formed yet with an agent that has joined."""

    reason: str


@dataclass(frozen=True, slots=True)
class Formed:
    """The generation that this agent is part of."""

    id: int
    generation: Gen
    node_rank: int
    num_nodes: int


@dataclass(frozen=True, slots=True)
class World:
    """The agent is part of ``generation``, and tells its workers this master address. Sent again after a reconnect."""

    generation: Gen
    node_rank: int
    num_nodes: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    world_key: str


@dataclass(frozen=True, slots=True)
class Regroup:
    """Stop the workers of ``generation`` and join again."""

    generation: Gen
    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """The job is done: exit 0, form no world again. ``failed``: it is stopped for this reason: stop the workers, exit 1."""

    reason: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """The agent ends; ``failed`` says whether its workers failed for good."""

    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class KvSet:
    """Write into the key-value space of a generation."""

    id: int
    generation: Gen
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class KvAdd:
    """Add to a counter of a generation; the reply has the sum in decimal."""

    id: int
    generation: Gen
    key: str
    amount: int


@dataclass(frozen=True, slots=True)
class KvGet:
    """Wait for a key of a generation. The client gives up by itself; a late reply is dropped."""

    id: int
    generation: Gen
    key: str


@dataclass(frozen=True, slots=True)
class KvValue:
    """The value, or the sum."""

    id: int
    value: bytes
