"""What a peer sends and the daemon doesn't take is bounded, and the peer waits."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from ckptd.daemon import peer as peers
from ckptd.daemon.peer import Peer
from ckptd_client.messages.restoring import RestoreCredit
from ckptd_client.wire import Connection
from tests.waiting import eventually

ROOM, SENT = 4, 40_000  # more than a socket holds


async def test_a_flood_waits_in_its_senders_socket_and_comes_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_QUEUE", ROOM)
    ours, theirs = socket.socketpair()
    peer, sender = Peer(Connection(ours), os.pidfd_open(os.getpid())), Connection(theirs)
    sent = 0

    def flood() -> None:
        nonlocal sent
        for number in range(SENT):
            sender.send(RestoreCredit([number]))
            sent = number + 1
        sender.close()

    flooding = threading.Thread(target=flood)
    flooding.start()
    peer.start()
    await eventually(lambda: peer._inbox.qsize() == ROOM, "the inbox is full")
    taken = [message async for message in _all(peer)]
    flooding.join()
    assert taken == [RestoreCredit([number]) for number in range(SENT)] and sent == SENT
    peer.close()
    peer.forget()


async def test_closing_ends_a_reader_that_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_QUEUE", ROOM)
    before = set(threading.enumerate())
    ours, theirs = socket.socketpair()
    peer, sender = Peer(Connection(ours), os.pidfd_open(os.getpid())), Connection(theirs)
    for number in range(10 * ROOM):
        sender.send(RestoreCredit([number]))
    peer.start()
    (reader,) = set(threading.enumerate()) - before
    await eventually(lambda: peer._inbox.qsize() == ROOM, "the inbox is full")
    peer.close()
    await eventually(lambda: not reader.is_alive(), "the reader has ended")
    assert peer._inbox.qsize() <= ROOM + 2, "one more, and the end"
    peer.forget()
    sender.close()


async def _all(peer: Peer):
    while (message := await peer.next()) is not None:
        assert peer._inbox.qsize() <= ROOM + 1
        yield message
