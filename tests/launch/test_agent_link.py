"""The agent's line to its daemon, and the store on top of it, against a fake daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous.api import RendezvousInfo, RendezvousParameters, RendezvousTimeoutError
from torch.distributed.elastic.utils.store import barrier

from ckptd_client.agent_link import AgentLink, AnswerTimeoutError
from ckptd_client.kv import DaemonStore
from ckptd_client.messages.agents import Join, KvAdd, KvGet, Regroup, World
from ckptd_client.messages.hello import Hello
from ckptd_client.rendezvous import CkptdRendezvousHandler
from tests.launch.fake import Fake
from tests.launch.processes import until


@pytest.fixture
def fake() -> Iterator[Fake]:
    daemon = Fake(want=1)
    yield daemon
    daemon.close()


@pytest.fixture
def link(fake: Fake, tmp_path: Path) -> Iterator[AgentLink]:
    fake.listen(0, tmp_path / "s")
    agent = AgentLink("job", tmp_path / "s")
    yield agent
    agent.close()


def soon() -> float:
    return time.monotonic() + 10


def test_store_of_one_generation(link: AgentLink) -> None:
    store, other = DaemonStore(link, (1, 1)), DaemonStore(link, (1, 2))
    store.set("a", "text")
    store.multi_set(["b", "c"], [b"\x00bytes", "x"])
    assert store.multi_get(["c", "a", "b"]) == [b"x", b"text", b"\x00bytes"]
    assert [store.add("n", 2), store.add("n", 3)] == [2, 5]
    assert store.get("n") == b"5"
    other.set_timeout(timedelta(milliseconds=50))
    with pytest.raises(DistStoreError, match="generation=\\(1, 2\\)"):
        other.get("a")
    with pytest.raises(DistStoreError):
        store.wait(["a", "never"], timedelta(milliseconds=50))
    store.settle({"a": b"mine"})
    store.set("a", "dropped")
    assert store.multi_get(["a", "c"]) == [b"mine", b"x"]


def test_a_wait_ends_when_the_key_comes(fake: Fake, link: AgentLink) -> None:
    got: list[bytes] = []
    store = DaemonStore(link, (1, 1))
    reader = threading.Thread(target=lambda: got.append(store.get("late")))
    reader.start()
    fake.wait(lambda: fake.said(KvGet))
    store.set("late", "here")
    reader.join(10)
    assert got == [b"here"]


def test_complete_ends_every_wait_at_once(fake: Fake, link: AgentLink) -> None:
    store = DaemonStore(link, (1, 1))
    waiter = threading.Thread(target=barrier, args=(store, 2, "exit", 300))
    waiter.start()
    fake.wait(lambda: fake.said(KvGet))
    fake.complete()
    waiter.join(5)
    assert not waiter.is_alive()
    assert store.get("anything") == b""
    assert store._timeout() == timedelta(seconds=300)


def test_regroup_ends_waits_of_its_generation_only(fake: Fake, link: AgentLink) -> None:
    formed = link.join(1, 1, 1, soon())
    fake._send(0, Regroup((1, 0), "an old one"))
    store = DaemonStore(link, formed.generation)
    store.set("still", "works")
    assert link.regroup is None
    fake.regroup()
    with pytest.raises(DistStoreError, match="a test wants it"):
        store.get("never")
    assert link.regroup == "a test wants it"
    assert link.join(1, 1, 1, soon()).generation == (1, 2)
    assert link.regroup is None


def test_what_holds_is_said_again_to_the_next_daemon(fake: Fake, link: AgentLink) -> None:
    fake.want = 2  # nobody else comes: the Join waits
    number = link.begin(lambda number: Join(number, 1, 1, 2, (0, 0), ""))
    fake.wait(lambda: fake.said(Join))
    fake.drop()
    fake.wait(lambda: len(fake.said(Join)) == 2)
    assert fake.said(Join)[0] == fake.said(Join)[1]
    with pytest.raises(AnswerTimeoutError, match="coordinator"):
        link.finish(number, time.monotonic())
    fake.want, fake.joining = 1, {}
    formed = link.join(1, 1, 2, soon())
    world = World(formed.generation, 0, 1, 1, 1, 2, "127.0.0.1:1")
    link.tell_world(world)
    fake.wait(lambda: fake.said(World))
    fake.drop()
    fake.wait(lambda: len(fake.said(World)) == 2)
    hello = fake.said(Hello)[-1]
    assert hello.generation == formed.generation and hello.role == "agent"


def test_an_add_without_an_answer_is_repeated_under_its_number(fake: Fake, link: AgentLink) -> None:
    store = DaemonStore(link, (1, 1))
    assert store.add("n", 1) == 1
    fake.mute = True
    got: list[int] = []
    adder = threading.Thread(target=lambda: got.append(store.add("n", 1)))
    adder.start()
    fake.wait(lambda: len(fake.said(KvAdd)) == 2)
    fake.mute = False
    fake.drop()
    adder.join(10)
    assert got == [2]
    assert fake.said(KvAdd)[1] == fake.said(KvAdd)[2]


def test_no_daemon_is_a_timeout_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "nobody"))
    handler = CkptdRendezvousHandler(RendezvousParameters("ckptd", "", "job", 1, 1, join_timeout="0.2"))
    with pytest.raises(RendezvousTimeoutError, match="no ckptd daemon answers"):
        handler.next_rendezvous()
    assert handler.shutdown()


def test_a_member_that_dies_before_all_have_met_means_another_try(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.want = 2
    fake.listen(0, tmp_path / "s0")
    fake.listen(1, tmp_path / "s1")
    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "s0"))
    handler = CkptdRendezvousHandler(RendezvousParameters("ckptd", "", "job", 1, 2, local_addr="127.0.0.1"))
    dying = AgentLink("job", tmp_path / "s1")
    threading.Thread(target=lambda: dying.join(1, 1, 2, soon()), daemon=True).start()  # joins, and is never heard of again
    results: list[RendezvousInfo] = []
    survivor = threading.Thread(target=lambda: results.append(handler.next_rendezvous()))
    survivor.start()
    fake.wait(lambda: any(get.key == "torchelastic/role_info/1" for get in fake.said(KvGet, 0)))
    with fake.lock:
        fake.want = 1
    fake.regroup()
    survivor.join(10)
    (info,) = results
    assert (info.rank, info.world_size) == (0, 1)
    assert info.bootstrap_store_info is not None and info.bootstrap_store_info.master_addr == "127.0.0.1"
    until(lambda: fake.said(World, 0), "the world was told")
    handler.shutdown()
    dying.close()
