"""Whom a daemon tells that the job is complete: the agent that the coordinator means, and no other (a real daemon)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ckptd.demo.cluster import Cluster, Plan
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc
from ckptd_client.agent_link import AgentLink, AnswerTimeoutError, JobCompleteError

SECONDS = 30.0


class Scripted(rpc.CoordinatorServicer):
    """A coordinator that says only what the test wants it to."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[pb.FromNode] = asyncio.Queue()
        self.to_say: asyncio.Queue[pb.ToNode] = asyncio.Queue()

    async def Attach(self, messages: AsyncIterator[pb.FromNode], _context: Any) -> AsyncIterator[pb.ToNode]:  # noqa: N802
        reading = asyncio.create_task(self._read(messages))
        yield pb.ToNode(welcome=pb.Welcome(epoch=1, heartbeat_seconds=1, lease_seconds=5))
        try:
            while True:
                yield await self.to_say.get()
        finally:
            reading.cancel()

    async def _read(self, messages: AsyncIterator[pb.FromNode]) -> None:
        async for message in messages:
            await self.said.put(message)

    async def joined(self) -> str:
        """The agent that joins next."""
        async with asyncio.timeout(SECONDS):
            while (message := await self.said.get()).WhichOneof("body") != "join":
                pass
        return message.join.agent

    def complete(self, agent: str) -> None:
        self.to_say.put_nowait(pb.ToNode(complete=pb.Complete(reason="done", agent=agent)))


async def test_complete_is_for_one_agent(tmp_path: Path) -> None:
    """What was meant for the last launcher's agent must not end the next one's. (Both are this process, under other names.)"""
    scripted, server = Scripted(), grpc.aio.server()
    rpc.add_CoordinatorServicer_to_server(scripted, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    plan = Plan("j", str(tmp_path / "store"), Path("x"), [], environment={"CKPTD_DAEMON__COORDINATOR": address})
    cluster = Cluster(plan, tmp_path)
    node = cluster.node("a")
    try:
        await asyncio.to_thread(node.start_daemon)
        link = AgentLink("j", node.socket)
        waiting = asyncio.create_task(asyncio.to_thread(link.join, 1, 1, 1, time.monotonic() + 3.0))
        agent = await scripted.joined()
        scripted.complete(agent + "0")
        with pytest.raises(AnswerTimeoutError):
            await waiting
        assert not link.complete
        waiting = asyncio.create_task(asyncio.to_thread(link.join, 1, 1, 1, time.monotonic() + SECONDS))
        assert await scripted.joined() == agent
        scripted.complete(agent)
        with pytest.raises(JobCompleteError, match="done"):
            await waiting
        link.close()
        again = AgentLink("j", node.socket)  # it had lost its line
        with pytest.raises(JobCompleteError, match="done"):
            await asyncio.to_thread(again.join, 1, 1, 1, time.monotonic() + SECONDS)
        again.close()
    finally:
        await asyncio.to_thread(cluster.close)
        await server.stop(None)
