"""Who lives in which arena. A tenant outlives its connections, and through its arena's description and marks also its daemon.

An arena is never given to another process. One whose process is gone goes as soon as no snapshot holds a slot of it. Taking it
away from a process that lives after all does no harm: the file loses its name, the mapping stays, and it registers anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from ckptd.daemon.arenas import HostedArena
from ckptd.daemon.process import Life, find_process, pid_namespace
from ckptd.daemon.ranks import RankRecord
from ckptd.errors import ProtocolError
from ckptd.model.ids import Generation
from ckptd_client.arena import HELD, SEALED, WRITING
from ckptd_client.messages.coding import Message
from ckptd_client.messages.saving import Item, Released
from ckptd_client.packing import pack, unpack

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deed:
    """An arena's description: whose it is, and what lies where in its slots."""

    job: str
    world_key: str
    rank: int
    world_size: int
    process: str
    namespace: int
    base_seq: int
    items: list[Item]

    def encode(self) -> bytes:
        """For the arena."""
        return pack(self)

    @property
    def objects(self) -> list[Item]:
        """Items whose length differs from save to save."""
        return [item for item in self.items if item.kind == "object"]


def deed_of(job: str, record: RankRecord, items: list[Item]) -> Deed:
    """For a trainer that registers now."""
    place = (record.world_key, record.rank, record.world_size, record.process)
    return Deed(job, *place, pid_namespace(), record.base_seq, items)


class Tenant:
    """A process and its arena. ``reach`` sends to the process while it is connected."""

    def __init__(self, hosted: HostedArena, deed: Deed, life: Life) -> None:
        self.hosted = hosted
        self.deed = deed
        self.life = life
        self.since_seconds = time.monotonic()  # of its present life, or of its end
        self.reach: Callable[[Message], object] | None = None
        self.taken: set[int] = set()  # slots that snapshots hold
        self.retired = False
        self._layout = 0
        self._untold: list[Message] = []

    @property
    def alive(self) -> bool:
        """False only when it is certain that its process will not write any more."""
        return self.life is not Life.GONE

    @property
    def free_slots(self) -> int:
        """How many snapshots it could take now."""
        return self.hosted.arena.slots - len(self.taken)

    @property
    def world(self) -> tuple[Generation, int]:
        """Its generation and how many ranks of that this node has, as far as its arena says."""
        generation, local_ranks = self.hosted.arena.read_world()
        return Generation(*generation), local_ranks

    def connected(self, reach: Callable[[Message], object], layout: int) -> None:
        """Its process is at the other end of ``reach``; what it has to hear is said now."""
        self.reach, self._layout, self.life = reach, layout, Life.ALIVE
        untold, self._untold = self._untold, []
        for message in untold:
            reach(message)

    def disconnected(self) -> None:
        """Its connection is over. Its process may come back."""
        self.reach = None

    def tell(self, message: Message) -> None:
        """Say what became of a snapshot, now or when its process is back; at most two per slot are open at a time."""
        if self.reach is not None:
            self.reach(message)
        else:
            self._untold = [*self._untold, message][-2 * self.hosted.arena.slots :]

    def sealed_slots(self) -> list[int]:
        """Slots that hold a snapshot which nobody has taken in yet."""
        arena = self.hosted.arena
        return [i for i in range(arena.slots) if i not in self.taken and arena.look(i).state in (SEALED, HELD)]

    def take(self, index: int) -> None:
        """A snapshot holds the slot now. Raises ProtocolError unless it is sealed, and as the layout says."""
        if not 0 <= index < self.hosted.arena.slots or index in self.taken:
            raise ProtocolError(f"a slot was sealed that is not the trainer's slot={index}")
        slot = self.hosted.arena.look(index)
        objects = self.deed.objects
        if slot.state not in (SEALED, HELD) or len(objects) != len(slot.lengths):
            raise ProtocolError(f"a slot was reported as sealed that is not slot={index}")
        if any(length > item.capacity for item, length in zip(objects, slot.lengths, strict=True)):
            raise ProtocolError("the lengths of the objects in a sealed slot do not fit its layout")
        self.taken.add(index)
        self.hosted.hold()

    def give_back(self, index: int) -> None:
        """No snapshot holds the slot any more."""
        self.hosted.arena.free(index)
        self.taken.discard(index)
        if self.reach is not None:
            self.reach(Released(self._layout, index))
        self.hosted.drop()

    def clear(self) -> list[int]:
        """Its process says that it writes nowhere now: the slots that it may have."""
        arena = self.hosted.arena
        for index in range(arena.slots):
            if index not in self.taken and arena.look(index).state == WRITING:
                arena.free(index)
        return [index for index in range(arena.slots) if index not in self.taken]

    def retire(self) -> None:
        """Its process uses another arena now, or none; what is sealed here stays until it is settled."""
        if not self.retired:
            self.retired = True
            self.hosted.drop()

    def end(self) -> None:
        """Its process is gone."""
        if self.alive:
            self.life, self.since_seconds = Life.GONE, time.monotonic()
        self.reach = None
        self.retire()


class Tenants:
    """Those of one job on this node."""

    def __init__(self) -> None:
        self._all: dict[str, Tenant] = {}

    def add(self, tenant: Tenant) -> None:
        """A new one."""
        self._all[tenant.hosted.arena.id] = tenant

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._all.values()))

    def tidy(self) -> None:
        """Forget those that nothing is left of."""
        self._all = {id: t for id, t in self._all.items() if not t.retired or t.taken}

    def claim(self, arena: str, record: RankRecord) -> Tenant:
        """The tenant that this very process was before its connection or its daemon ended. Raises ProtocolError."""
        tenant = self._all.get(arena)
        if tenant is None or tenant.retired:
            raise ProtocolError("this daemon has no such arena; register a new one")
        deed = tenant.deed
        if (deed.process, deed.rank, deed.world_size) != (record.process, record.rank, record.world_size):
            raise ProtocolError("this arena is another process's; register a new one")
        return tenant

    def local_ranks(self, generation: Generation) -> int:
        """How many ranks of a generation this node has, as far as arenas say."""
        return max((ranks for theirs, ranks in (tenant.world for tenant in self) if theirs == generation), default=0)

    def replaced(self, record: RankRecord) -> None:
        """A newcomer: whoever had its rank, of whom we only don't know that he is gone, will hardly come back."""
        for tenant in self:
            if tenant.life is Life.UNKNOWN and tenant.deed.rank == record.rank and tenant.deed.process != record.process:
                tenant.end()


def read_deed(hosted: HostedArena) -> Deed:
    """Raises ProtocolError for a description that isn't one."""
    deed = unpack(Deed, hosted.arena.description)
    if len(deed.objects) != hosted.arena.shape.objects:
        raise ProtocolError("an arena's description does not fit its shape")
    return deed


def recovered(hosted: HostedArena, deed: Deed) -> tuple[Tenant, int]:
    """(the tenant of an arena that an earlier daemon made, its process's pidfd or -1)."""
    life, pidfd = find_process(deed.process, deed.namespace)
    generation, _ = hosted.arena.read_world()
    _log.info("arena_recovered", job=deed.job, rank=deed.rank, generation=str(Generation(*generation)), trainer=life.value)
    return Tenant(hosted, deed, life), pidfd
