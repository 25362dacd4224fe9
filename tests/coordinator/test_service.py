"""The coordinator on loopback, with a real log in a directory: streams, restarts, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from ckptd.cli.events import _tell
from ckptd.cli.status import WELL, ask
from ckptd.clock import SystemClock
from ckptd.commit.leader import LeaderHint, read_hint, write_hint
from ckptd.commit.log import CommitLog
from ckptd.commit.office import take_office
from ckptd.config import Settings, StoreSettings
from ckptd.coordinator.convert import to_attempt, to_generation
from ckptd.coordinator.durable import Assembled
from ckptd.coordinator.leader import check_free
from ckptd.coordinator.main import OK, STEPPED_DOWN, check_bind, run_coordinator
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.service import StreamLink
from ckptd.errors import ConfigError, JobInUseError
from ckptd.model.canonical import digest
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.access import Guard
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc
from ckptd.store.directory import DirectoryStore

QUICK = CoordinatorOptions(
    heartbeat_seconds=0.05, lease_seconds=0.6, debounce_seconds=0, join_seconds=0.2, every_steps=10, linger_seconds=0
)
DEADLINE_SECONDS = 20.0
G11 = Generation(1, 1)


async def fake_assemble(attempt, world_size, parent, parts, commits):
    return Assembled(digest(b"".join(parts)))


@asynccontextmanager
async def coordinator(
    store, options: CoordinatorOptions = QUICK, **more: object
) -> AsyncIterator[tuple[asyncio.Task[int], str]]:
    """A running one, and its address. Cancelled (as good as killed) at the end if it still runs."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    arguments = {"assemble": fake_assemble, **more}
    task = asyncio.create_task(
        run_coordinator(store, "job", "127.0.0.1:0", options, ready=ready.set_result, **arguments)  # type: ignore[arg-type]
    )
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_SECONDS)
    if task.done():
        await task
    try:
        yield task, ready.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Daemon:
    """One stream, read in the background."""

    def __init__(self, address: str, name: str, *, job: str = "job", protocol: int = 1, token: str = "") -> None:
        self.heard: list[pb.ToNode] = []
        self._news = asyncio.Condition()
        self._channel = grpc.aio.insecure_channel(address)
        metadata = [("authorization", f"Bearer {token}")] if token else None
        self._stream = rpc.CoordinatorStub(self._channel).Attach(metadata=metadata)
        self._hello = pb.FromNode(hello=pb.NodeHello(protocol=protocol, job=job, node=name, incarnation="i1"))
        self.name = name

    async def __aenter__(self) -> Daemon:
        await self._stream.write(self._hello)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        async for message in self._stream:
            async with self._news:
                self.heard.append(message)
                self._news.notify_all()

    async def say(self, **body: object) -> None:
        await self._stream.write(pb.FromNode(**body))

    async def until(self, kind: str, right: Callable[[object], bool] = lambda _: True):
        """The first message of a kind that is right."""

        def find():
            found = [getattr(m, kind) for m in self.heard if m.WhichOneof("body") == kind]
            return next((m for m in found if right(m)), None)

        async with asyncio.timeout(DEADLINE_SECONDS), self._news:
            await self._news.wait_for(lambda: find() is not None)
        return find()

    async def join(self) -> None:
        await self.say(join=pb.Join(agent=self.name, local_world_size=1, min_nodes=1, max_nodes=2))

    async def facts(self, generation: Generation, rank: int) -> None:
        id = to_generation(generation)
        member = pb.Member(
            agent=self.name, generation=id, node_rank=rank, num_nodes=2, local_world_size=1, min_nodes=1, max_nodes=2
        )
        await self.say(member=member)
        await self.say(rank_up=pb.RankUp(generation=id, world_key="k", rank=rank, world_size=2, process=self.name, ready=True))
        await self.say(heartbeat=pb.Heartbeat(ranks=[pb.RankStatus(generation=id, rank=rank, step=1)]))

    async def store(self, snapshot: Snapshot, rank: int) -> None:
        attempt = to_attempt(Attempt(snapshot, 0))
        await self.say(sealed=pb.Sealed(attempt=attempt, rank=rank))
        await self.say(uploaded=pb.Uploaded(attempt=attempt, ranks=[rank], part=self.name.encode()))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


async def test_form_commit_die_adopt_commit(store):
    """The coordinator is killed in mid-training and started again: epoch + 1, the same generation, commits go on."""
    async with coordinator(store) as (_, address), Daemon(address, "a") as a, Daemon(address, "b") as b:
        await _until_hint(store, address)
        await a.join()
        await b.join()
        formed = await a.until("formed")
        assert (formed.generation.epoch, formed.num_nodes) == (1, 2)
        ranks = {"a": (await a.until("formed")).node_rank, "b": (await b.until("formed")).node_rank}
        for daemon in (a, b):
            await daemon.facts(G11, ranks[daemon.name])
        assert (await a.until("schedule")).first == 10
        for daemon in (a, b):
            await daemon.store(Snapshot(G11, 10), ranks[daemon.name])
        first = await b.until("committed")
    async with coordinator(store) as (_, address), Daemon(address, "a") as a, Daemon(address, "b") as b:
        assert (await a.until("welcome")).epoch == 2
        for daemon in (a, b):
            await daemon.facts(G11, ranks[daemon.name])
            await daemon.store(Snapshot(G11, 20), ranks[daemon.name])
        second = await a.until("committed", lambda m: m.attempt.snapshot.step == 20)
        assert second.seq > first.seq
        assert not [m for m in a.heard if m.WhichOneof("body") == "regroup"]
    log = CommitLog(store, "job")
    state = await log.load()
    assert [entry.attempt.snapshot.step for entry in state.commits.values()] == [10, 20] and state.epoch == 2


async def test_job_in_use(store):
    """Two coordinators with one job id would depose each other for ever."""
    async with coordinator(store) as (_, address):
        await _until_hint(store, address)
        with pytest.raises(JobInUseError, match=address):
            async with coordinator(store):
                pass
        async with coordinator(store, take_over=True):
            pass


async def test_hint_that_moves_is_alive(store):
    """It can't be reached from here, but it writes: somebody is there (PROTOCOLS 4.10)."""
    await write_hint(store, "job", LeaderHint("192.0.2.1:1", 4, 7))

    class Mover:
        async def sleep(self, _seconds: float) -> None:
            await write_hint(store, "job", LeaderHint("192.0.2.1:1", 4, 8))

        def monotonic(self) -> float:
            return 0.0

    class Still(Mover):
        async def sleep(self, _seconds: float) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:

        async def nobody_can_tell(*_: object) -> None:
            return None

        patch.setattr("ckptd.coordinator.leader.ping", nobody_can_tell)
        with pytest.raises(JobInUseError):
            await check_free(store, "job", False, 1.0, clock=Mover())
        await check_free(store, "job", False, 1.0, clock=Still())


async def test_steps_down_when_deposed(store):
    """Another office in the log ends this one, with an exit code."""
    async with coordinator(store) as (task, address):
        await take_office(CommitLog(store, "job"))
        async with Daemon(address, "a") as a:
            await a.join()
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await task == STEPPED_DOWN
            assert not [m for m in a.heard if m.WhichOneof("body") == "formed"]


async def test_idle_one_notices_its_successor(store):
    """With nothing to write, a deposed coordinator would keep its daemons for ever."""
    async with coordinator(store) as (task, address):
        await _until_hint(store, address)
        async with coordinator(store, take_over=True) as (_, successor):
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await task == STEPPED_DOWN
            await _until_hint(store, successor)


class LingeringClock(SystemClock):
    """Says when the coordinator begins to linger."""

    def __init__(self, linger_seconds: float) -> None:
        self.linger_seconds, self.lingers = linger_seconds, asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds == self.linger_seconds:
            self.lingers.set()
        await super().sleep(seconds)


async def test_stays_for_a_job_that_is_started_again_while_it_lingers(store):
    lingering, clock = replace(QUICK, linger_seconds=0.77), LingeringClock(0.77)
    running = coordinator(store, lingering, exit_when_complete=True, clock=clock)
    async with running as (task, address), Daemon(address, "a") as a:
        await a.say(rank_up=pb.RankUp(world_key="k", rank=0, world_size=1, process="p"))
        await a.until("formed")
        await a.say(finished=pb.Finished(generation=to_generation(G11), rank=0))
        await a.until("complete")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await clock.lingers.wait()
        await a.join()
        again = (await a.until("formed", lambda formed: formed.generation.n == 2)).generation
        done, _ = await asyncio.wait([task], timeout=2 * lingering.linger_seconds)
        assert not done, "it has work again"
        await a.say(finished=pb.Finished(generation=again, rank=0))
        assert (await a.until("complete", lambda told: told.agent == "a")).reason.startswith("all ranks of generation 1-2")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await task == OK


async def test_ends_with_the_job(store):
    """A coordinator that was started for one job ends when that is complete."""
    async with coordinator(store, exit_when_complete=True) as (task, address), Daemon(address, "a") as a:
        up = pb.RankUp(world_key="k", rank=0, world_size=1, process="p")
        await a.say(rank_up=up)
        generation = (await a.until("formed")).generation
        await a.say(finished=pb.Finished(generation=generation, rank=0))
        await a.until("complete")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await task == OK
    hint = await read_hint(store, "job")
    assert hint is not None and hint.over == "all ranks of generation 1-1 have finished or are gone"
    settings = Settings(store=StoreSettings(url=store.url))
    answers = await ask(settings, "job")
    assert answers.over == hint.over and answers.code() == WELL and not answers.concerns()
    lines: list[str] = []
    await asyncio.wait_for(_tell(settings, "job", True, lambda line: lines.append(line.kind)), DEADLINE_SECONDS)
    assert lines == ["done"]
    async with coordinator(store) as (_, address):
        await _until_hint(store, address)
        assert (await ask(settings, "job")).over == ""


async def test_refusals(store):
    """Each says why, and what to try."""
    async with coordinator(store, guard=Guard("secret")) as (_, address):
        async with Daemon(address, "a", protocol=99, token="secret") as old:
            refusal = await old.until("refused")
            assert refusal.code == "version"
            assert "speaks protocol 1, the daemon 99; the coordinator is older: upgrade ckptd there" in refusal.message
        async with Daemon(address, "a", job="other", token="secret") as lost:
            assert "job 'job'" in (await lost.until("refused")).message
        async with Daemon(address, "a", token="secret") as rude:
            await rude.say(join=pb.Join(agent="a", local_world_size=1, min_nodes=3, max_nodes=2))
            assert (await rude.until("refused")).code == "protocol"


async def test_newer_stream_replaces_the_earlier(store):
    """A daemon that reconnects before we saw its first stream end."""
    async with coordinator(store) as (_, address), Daemon(address, "a") as first:
        await first.until("welcome")
        async with Daemon(address, "a") as second:
            await second.join()
            await second.until("formed", lambda m: m.num_nodes == 1)
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.wait([first._reader])


def test_full_queue_closes_the_link():
    """A node that does not read can't fill our memory."""
    link = StreamLink(2)
    assert link.send(pb.ToNode()) and link.send(pb.ToNode())
    assert not link.send(pb.ToNode()) and not link.send(pb.ToNode())


def test_beyond_loopback_needs_a_token():
    check_bind("127.0.0.1:0", None)
    check_bind("[::1]:5", None)
    check_bind("0.0.0.0:0", "token")
    for bind in ("0.0.0.0:0", "[::]:0", "host:1", "1.2.3.4", "127.0.0.1:x"):
        with pytest.raises(ConfigError):
            check_bind(bind, None)


async def _until_hint(store: DirectoryStore, address: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            hint = await read_hint(store, "job")
            if hint is not None and hint.address == address:
                return
            await asyncio.sleep(0.01)
