"""Messages between client and daemon: what is sent arrives, and garbage is a ProtocolError, never anything else."""

from __future__ import annotations

import os
import socket
import struct
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.errors import DaemonUnavailableError, ProtocolError, VersionMismatchError
from ckptd_client.messages.agents import KvValue
from ckptd_client.messages.coding import MESSAGE_BYTES, Message, decode, encode
from ckptd_client.messages.hello import PROTOCOL_VERSION, Hello, Ok, Welcome
from ckptd_client.messages.saving import Registered
from ckptd_client.wire import Connection

KINDS = typing.get_args(Message)
NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)
FLOATS = st.floats(allow_nan=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """All values of an annotation."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return st.lists(values(args[0]), max_size=3)
    if origin is tuple:
        if args[-1] is ...:
            return st.lists(values(args[0]), max_size=3).map(tuple)
        return st.tuples(*(values(arg) for arg in args))
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if hasattr(kind, "__dataclass_fields__"):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{field.name: values(hints[field.name]) for field in fields(kind)})
    return {int: NUMBERS, str: st.text(max_size=20), bytes: st.binary(max_size=50), bool: st.booleans(), float: FLOATS}[kind]


MESSAGES = st.one_of(*(values(kind) for kind in KINDS))
SIMPLE = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=9), st.binary(max_size=9))
TREES = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner), max_leaves=8
)


@given(MESSAGES)
def test_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_garbage(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body)


@given(st.sampled_from([kind.__name__ for kind in KINDS if fields(kind)] + ["Item", "CkptdError", "eval"]), TREES)
def test_well_formed_msgpack_with_the_wrong_fields(name: str, content: object) -> None:
    try:
        decode(msgpack.packb([name, content]))
    except ProtocolError:
        pass
    else:
        raise AssertionError("no message has this content")


@given(MESSAGES, st.data())
def test_a_message_with_one_byte_changed(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode(body)
    except ProtocolError:
        pass


@given(MESSAGES, st.data())
def test_a_message_cut_short(message: Message, data: st.DataObject) -> None:
    body = encode(message)
    with pytest.raises(ProtocolError):
        decode(body[: data.draw(st.integers(0, len(body) - 1))])


@given(MESSAGES, st.data())
def test_a_field_of_another_type(message: Message, data: st.DataObject) -> None:
    name, content = msgpack.unpackb(encode(message), strict_map_key=False)
    if not content:
        return
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = None  # no field may be none
    with pytest.raises(ProtocolError):
        decode(msgpack.packb([name, content]))


def test_a_deep_tree_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x91" * 100_000)


def test_too_long_a_message_is_refused_by_its_sender() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        encode(KvValue(1, bytes(MESSAGE_BYTES)))


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket of its peer."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_descriptors_come_with_their_message(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    peer = Connection(theirs)
    read, write = os.pipe()
    peer.send(Ok(1))
    peer.send(Registered(2, 1, 4096), (read,))
    peer.send(Ok(3))
    assert connection.receive() == (Ok(1), [])
    message, [fd] = connection.receive()
    assert message == Registered(2, 1, 4096)
    os.write(write, b"x")
    assert os.read(fd, 1) == b"x"
    assert connection.receive() == (Ok(3), [])
    for each in (read, write, fd):
        os.close(each)


@pytest.mark.parametrize("length", [0, MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_an_impossible_length(ends: tuple[Connection, socket.socket], length: int) -> None:
    connection, theirs = ends
    theirs.sendall(struct.pack(">I", length))
    with pytest.raises(ProtocolError, match="outside"):
        connection.receive()


def test_a_peer_that_ends_in_the_middle(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    theirs.sendall(struct.pack(">I", 100) + b"half")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(DaemonUnavailableError):
        connection.receive()


def test_too_many_descriptors(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    body = encode(Ok(1))
    socket.send_fds(theirs, [struct.pack(">I", len(body)) + body], [0] * 9)
    with pytest.raises(ProtocolError, match="descriptors"):
        connection.receive()


@pytest.mark.parametrize("kind", [Hello, Welcome])
def test_a_newcomer_of_another_version_is_known_as_such_whatever_fields_it_has(kind: type[Message]) -> None:
    body = {"protocol": PROTOCOL_VERSION + 1, "surprise": 1}
    with pytest.raises(VersionMismatchError, match="install the same version of ckptd and ckptd-client"):
        decode(msgpack.packb([kind.__name__, body]))
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb([kind.__name__, body | {"protocol": PROTOCOL_VERSION}]))
    assert not isinstance(caught.value, VersionMismatchError)
