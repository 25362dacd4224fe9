"""The rendezvous store of each generation: what torch's agents and workers' process groups exchange (PROTOCOLS 5).

One per generation, because quick restarts on a shared store hand out the addresses of dead workers (FACTS). Bounded: it carries
addresses and barriers, not data. Values come again when daemons repeat their facts, so a new coordinator has them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from ckptd.coordinator.convert import generation_of, text_of
from ckptd.errors import ProtocolError
from ckptd.model.ids import NO_GENERATION, Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb

MAX_GENERATIONS: Final = 4
MAX_KEYS: Final = 20_000
MAX_VALUE_BYTES: Final = 1 << 20
MAX_TOTAL_BYTES: Final = 64 << 20
MAX_WAITERS: Final = 100_000

Send = Callable[[pb.ToNode], object]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Table:
    values: dict[str, bytes] = field(default_factory=dict)
    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    value_bytes: int = 0

    def get(self, key: str) -> bytes | None:
        """As torch's stores have it: a counter reads as decimal digits, starting from the number that was set."""
        value, totals = self.values.get(key), self.totals.get(key)
        if totals is None:
            return value
        base = int(value) if value is not None and value.isdigit() else 0
        return str(base + sum(totals.values())).encode()

    def set(self, key: str, value: bytes) -> None:
        grown = self.value_bytes + len(value) - len(self.values.get(key, b""))
        if len(value) > MAX_VALUE_BYTES or grown > MAX_TOTAL_BYTES:
            raise ProtocolError(f"the rendezvous store is for small values bytes={len(value)} total={grown}")
        self._room(key)
        self.values[key], self.value_bytes = value, grown

    def add(self, key: str, agent: str, total: int) -> None:
        self._room(key)
        self.totals.setdefault(key, {})[agent] = total

    def _room(self, key: str) -> None:
        known = key in self.values or key in self.totals
        if not known and len(self.values) + len(self.totals) >= MAX_KEYS:
            raise ProtocolError(f"the rendezvous store is full: {MAX_KEYS} keys")


@dataclass(frozen=True, slots=True)
class _Waiter:
    node: str
    id: int
    key: str
    send: Send


class KvStores:
    """All generations' stores and who waits on them."""

    def __init__(self) -> None:
        self._tables: dict[Generation, _Table] = {}
        self._waiters: dict[Generation, list[_Waiter]] = {}
        self._lowest = NO_GENERATION
        self._complete = False

    def receive(self, node: str, message: pb.FromNode, send: Send) -> None:
        """Apply a KvSet, KvAdd or KvGet; answers come through ``send``, now or later. Raises ProtocolError."""
        match message.WhichOneof("body"):
            case "kv_set":
                table, generation = self._table(message.kv_set.generation)
                if table is not None:
                    table.set(text_of(message.kv_set.key), message.kv_set.value)
                    self._wake(generation, table)
            case "kv_add":
                self._add(message.kv_add, send)
            case "kv_get":
                self._get(node, message.kv_get, send)

    def current(self, generation: Generation) -> None:
        """A new generation: the stores of lower ones go, and who waits there is told that there is nothing."""
        self._lowest, self._complete = generation, False
        for old in [known for known in {*self._tables, *self._waiters} if known < generation]:
            self._tables.pop(old, None)
            for waiter in self._waiters.pop(old, []):
                _answer(waiter.send, waiter.id, None)

    def complete(self) -> None:
        """The job is done: nobody waits any longer (torch's exit barrier), every get finds an empty value."""
        self._complete = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                _answer(waiter.send, waiter.id, b"")
        self._waiters.clear()

    def forget(self, node: str) -> None:
        """The node's stream ended; it asks again on the next one."""
        for generation, waiters in self._waiters.items():
            self._waiters[generation] = [waiter for waiter in waiters if waiter.node != node]

    def _table(self, message: pb.Generation) -> tuple[_Table | None, Generation]:
        generation = generation_of(message)
        if generation < self._lowest:
            return None, generation
        if generation not in self._tables:
            self._tables[generation] = _Table()
            for old in sorted(self._tables)[:-MAX_GENERATIONS]:
                _log.warning("too many rendezvous stores", dropped=str(old))
                del self._tables[old]
        return self._tables.get(generation), generation

    def _add(self, add: pb.KvAdd, send: Send) -> None:
        table, generation = self._table(add.generation)
        if table is None:
            _answer(send, add.id, None)
            return
        table.add(text_of(add.key), text_of(add.agent), add.total)
        _answer(send, add.id, table.get(add.key))
        self._wake(generation, table)

    def _get(self, node: str, get: pb.KvGet, send: Send) -> None:
        if self._complete:
            _answer(send, get.id, b"")
            return
        table, generation = self._table(get.generation)
        value = None if table is None else table.get(text_of(get.key))
        if table is None or value is not None:
            _answer(send, get.id, value)
            return
        waiters = self._waiters.setdefault(generation, [])
        if sum(map(len, self._waiters.values())) >= MAX_WAITERS:
            raise ProtocolError(f"more than {MAX_WAITERS} gets wait in the rendezvous store")
        waiters[:] = [waiter for waiter in waiters if (waiter.node, waiter.id) != (node, get.id)]
        waiters.append(_Waiter(node, get.id, get.key, send))

    def _wake(self, generation: Generation, table: _Table) -> None:
        still = []
        for waiter in self._waiters.pop(generation, []):
            value = table.get(waiter.key)
            if value is None:
                still.append(waiter)
            else:
                _answer(waiter.send, waiter.id, value)
        if still:
            self._waiters[generation] = still


def _answer(send: Send, id: int, value: bytes | None) -> None:
    send(pb.ToNode(kv_value=pb.KvValue(id=id, value=value or b"", found=value is not None)))
