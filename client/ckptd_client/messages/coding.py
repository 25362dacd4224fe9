"""Every message there is, as msgpack."""

from __future__ import annotations

import typing

import msgpack

from ckptd_client.errors import ProtocolError, VersionMismatchError
from ckptd_client.messages.agents import Complete, Formed, Join, KvAdd, KvGet, KvSet, KvValue, Leave, Regroup, Waiting, World
from ckptd_client.messages.hello import (
    PROTOCOL_VERSION,
    Failed,
    Hello,
    Ok,
    Refused,
    StatusAsk,
    StatusInfo,
    Welcome,
    different_versions,
)
from ckptd_client.messages.restoring import (
    ReadInfo,
    ReadList,
    ReadListed,
    ReadOpen,
    RestoreAsk,
    RestoreCredit,
    RestoreEnd,
    RestoreFrames,
    RestoreInfo,
    RestoreRead,
    RestoreReport,
    RestoreRing,
)
from ckptd_client.messages.saving import (
    Aborted,
    Durable,
    Enter,
    Finished,
    Missed,
    Notice,
    Register,
    Registered,
    Released,
    Resume,
    Resumed,
    Sealed,
    Vacate,
)
from ckptd_client.packing import plain_fields, reader

MESSAGE_BYTES = 64 << 20

Message = (
    Hello | Welcome | Refused | Ok | Failed | Register | Registered | Resume | Resumed | Vacate | Sealed | Missed | Released
    | Durable | Aborted | RestoreAsk | RestoreInfo | RestoreRead | RestoreRing | RestoreFrames | RestoreCredit | RestoreEnd
    | RestoreReport | Enter | ReadOpen | ReadInfo | ReadList | ReadListed | Finished | Notice | StatusAsk | StatusInfo
    | Join | Waiting | Formed | World | Regroup | Complete | Leave | KvSet | KvAdd | KvGet | KvValue
)  # fmt: skip

_TYPES: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """The wire form, without its length. Raises ProtocolError when it is over MESSAGE_BYTES."""
    body: bytes = msgpack.packb([type(message).__name__, message], default=plain_fields, use_bin_type=True)
    if len(body) > MESSAGE_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is over the limit of {MESSAGE_BYTES}")
    return body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Read one message; raises ProtocolError, or VersionMismatchError when it doesn't fit and is of another version."""
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=False)
        name, content = value
        kind = _TYPES[name]
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a ckptd message: {type(error).__name__}") from error
    try:
        built: Message = reader(kind)(content)
    except ProtocolError:
        theirs = content.get("protocol", PROTOCOL_VERSION) if isinstance(content, dict) else PROTOCOL_VERSION
        if kind in (Hello, Welcome) and isinstance(theirs, int) and theirs != PROTOCOL_VERSION:
            raise VersionMismatchError(different_versions(theirs)) from None
        raise
    return built
