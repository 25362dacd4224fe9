"""Who may have an arena, and for how long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd.daemon.arenas import ArenaHost, HostedArena
from ckptd.daemon.process import Life, find_process, pid_namespace, process_identity
from ckptd.daemon.ranks import RankRecord
from ckptd.daemon.tenants import Deed, Tenant, Tenants, deed_of, read_deed, recovered
from ckptd.errors import ProtocolError
from ckptd.model.ids import Generation
from ckptd.notify import Notifier
from ckptd_client.arena import FREE, HELD, PAGE, WRITING
from ckptd_client.messages.coding import Message
from ckptd_client.messages.saving import Aborted, Durable, Item, Released
from ckptd_client.packing import pack

ITEM = Item("x", "object", "global", "object", (), (), (), 0, 100)
GENERATION = (1, 2)


def record(rank: int = 0, process: str = "1.1") -> RankRecord:
    return RankRecord("host:1", rank, 2, process, Generation(*GENERATION), 0, True)


@pytest.fixture
def host(tmp_path: Path) -> ArenaHost:
    return ArenaHost(tmp_path / "arena", 1 << 20, Notifier(None))


def arena(host: ArenaHost, who: RankRecord, items: list[Item]) -> tuple[HostedArena, Deed]:
    deed = deed_of("job", who, items)
    return host.create(2, PAGE, len(deed.objects), deed.encode()), deed


def tenant_of(host: ArenaHost, who: RankRecord, life: Life = Life.ALIVE) -> Tenant:
    return Tenant(*arena(host, who, [ITEM]), life)


def identity(pid: int) -> str:
    pidfd = os.pidfd_open(pid)
    try:
        return process_identity(pidfd)
    finally:
        os.close(pidfd)


def test_which_processes_live() -> None:
    me = identity(os.getpid())
    life, pidfd = find_process(me, pid_namespace())
    assert life is Life.ALIVE
    os.close(pidfd)
    assert find_process(me, pid_namespace() + 1) == (Life.UNKNOWN, -1)
    assert find_process("0.7", pid_namespace()) == (Life.UNKNOWN, -1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = identity(child.pid)
    child.communicate(b"\n")
    assert find_process(known, pid_namespace()) == (Life.GONE, -1)
    inode = known.partition(".")[2]
    if inode != me.partition(".")[2]:  # from Linux 6.9 on: a pid that is another's by now
        assert find_process(f"{os.getpid()}.{inode}", pid_namespace()) == (Life.GONE, -1)


def test_a_deed_is_read_back_or_refused(host: ArenaHost) -> None:
    hosted, deed = arena(host, record(), [ITEM])
    assert read_deed(hosted) == deed
    assert recovered(hosted, deed)[0].life in (Life.GONE, Life.ALIVE)  # process 1
    for description in (b"", b"\x90", pack({"job": 1}), deed.encode()):
        with pytest.raises(ProtocolError):
            read_deed(host.create(2, PAGE, 7, description))


def test_only_the_same_process_comes_back(host: ArenaHost) -> None:
    tenants, tenant = Tenants(), tenant_of(host, record())
    tenants.add(tenant)
    id = tenant.hosted.arena.id
    assert tenants.claim(id, record()) is tenant
    for other in (record(process="2.2"), record(rank=1)):
        with pytest.raises(ProtocolError, match="another process's"):
            tenants.claim(id, other)
    tenant.end()
    for gone in (id, "0" * 32):
        with pytest.raises(ProtocolError, match="no such arena"):
            tenants.claim(gone, record())


def test_what_a_dead_process_had_sealed_keeps_its_memory(host: ArenaHost, tmp_path: Path) -> None:
    tenant = tenant_of(host, record())
    tenant.hosted.arena.begin(0)
    tenant.hosted.arena.begin(1)
    tenant.hosted.arena.seal(1, GENERATION, 5, [3])
    assert tenant.sealed_slots() == [1]
    tenant.take(1)
    for index in (0, 1, 2):  # half written, taken already, not there
        with pytest.raises(ProtocolError):
            tenant.take(index)
    tenant.end()
    tenant.end()
    assert not tenant.alive and len(list(tmp_path.glob("arena/*.arena"))) == 1
    tenant.give_back(1)
    assert list(tmp_path.glob("arena/*.arena")) == []


def test_lengths_beyond_the_layout_are_refused(host: ArenaHost) -> None:
    tenant = tenant_of(host, record())
    tenant.hosted.arena.begin(0)
    tenant.hosted.arena.seal(0, GENERATION, 5, [101])
    with pytest.raises(ProtocolError, match="do not fit its layout"):
        tenant.take(0)


def test_what_happened_while_it_was_away_is_said_first(host: ArenaHost) -> None:
    tenant = tenant_of(host, record(), Life.UNKNOWN)
    area = tenant.hosted.arena
    for index in (0, 1):
        area.begin(index)
    area.seal(1, GENERATION, 5, [3])
    tenant.take(1)
    area.hold(1, 0)
    tenant.tell(Durable(5, 9))
    heard: list[Message] = []
    tenant.connected(heard.append, 4)
    assert heard == [Durable(5, 9)] and tenant.life is Life.ALIVE
    assert tenant.clear() == [0]
    assert [area.look(index).state for index in (0, 1)] == [FREE, HELD]
    tenant.give_back(1)
    assert heard[1:] == [Released(4, 1)]
    tenant.disconnected()
    area.begin(0)
    assert area.look(0).state == WRITING
    for step in range(20):
        tenant.tell(Aborted(step, ""))
    tenant.connected(heard.append, 5)
    assert heard[2:] == [Aborted(step, "") for step in range(16, 20)]


def test_a_newcomer_takes_the_place_of_one_that_nobody_has_seen(host: ArenaHost, tmp_path: Path) -> None:
    tenants = Tenants()
    unknown, alive, other = (
        tenant_of(host, record(), Life.UNKNOWN),
        tenant_of(host, record(process="3.3")),
        tenant_of(host, record(rank=1), Life.UNKNOWN),
    )
    for tenant in (unknown, alive, other):
        tenants.add(tenant)
    tenants.replaced(record(process="1.1"))
    assert unknown.alive
    tenants.replaced(record(process="2.2"))
    assert [t.alive for t in (unknown, alive, other)] == [False, True, True]
    tenants.tidy()
    assert set(tenants) == {alive, other} and len(list(tmp_path.glob("arena/*.arena"))) == 2


def test_how_many_ranks_a_node_has_is_known_before_they_are_back(host: ArenaHost) -> None:
    tenants = Tenants()
    for rank in (0, 1):
        tenant = tenant_of(host, record(rank))
        tenant.hosted.arena.write_world(GENERATION, 2)
        tenants.add(tenant)
    assert tenants.local_ranks(Generation(*GENERATION)) == 2
    assert tenants.local_ranks(Generation(9, 9)) == 0
