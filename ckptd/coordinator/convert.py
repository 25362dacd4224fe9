"""Identities in messages ↔ our values, with bounds: a number that could not stand in an object's key is refused (I11)."""

from __future__ import annotations

import re
from typing import Final

from ckptd.coordinator.state import MAX_WORLD_SIZE
from ckptd.errors import ProtocolError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb

_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_TEXT: Final = 4096
MAX_REPORTED: Final = 16


def generation_of(message: pb.Generation) -> Generation:
    """Raises ProtocolError."""
    if max(message.epoch, message.n) >= 10**10:
        raise ProtocolError(f"not a generation: {message.epoch}-{message.n}")
    return Generation(message.epoch, message.n)


def snapshot_of(message: pb.Snapshot) -> Snapshot:
    """Raises ProtocolError; a snapshot's generation is never (0, 0)."""
    generation = generation_of(message.generation)
    if not generation or message.step >= 10**15:
        raise ProtocolError(f"not a snapshot: {generation}.{message.step}")
    return Snapshot(generation, message.step)


def attempt_of(message: pb.Attempt) -> Attempt:
    """Raises ProtocolError."""
    if message.number >= 10**6:
        raise ProtocolError(f"not an attempt number: {message.number}")
    return Attempt(snapshot_of(message.snapshot), message.number)


def rank_of(rank: int) -> int:
    """Raises ProtocolError."""
    if rank >= MAX_WORLD_SIZE:
        raise ProtocolError(f"rank {rank} is beyond the largest world of {MAX_WORLD_SIZE}")
    return rank


def text_of(text: str) -> str:
    """Raises ProtocolError for a text without bound."""
    if len(text) > MAX_TEXT:
        raise ProtocolError(f"a text of {len(text)} characters; at most {MAX_TEXT}")
    return text


def reason_of(text: str) -> str:
    """A reason is for people: what is too long is cut."""
    return text[:MAX_TEXT]


def report_of(message: pb.NodeReport) -> pb.NodeReport:
    """What a node says for people: what is too much is cut."""
    report = pb.NodeReport(troubles=message.troubles[:MAX_REPORTED], uploads=message.uploads[:MAX_REPORTED])
    for trouble in report.troubles:
        trouble.topic, trouble.what = trouble.topic[:100], trouble.what[:1000]
    if message.HasField("newest"):
        report.newest.CopyFrom(message.newest)
    return report


def node_of(text: str) -> str:
    """Raises ProtocolError unless it may name a node."""
    if not _NODE.fullmatch(text):
        raise ProtocolError(f"a node id has 1 to 64 letters, digits, '_', '.' and '-'; got {text[:80]!r}")
    return text


def to_generation(generation: Generation) -> pb.Generation:
    """For a message."""
    return pb.Generation(epoch=generation.epoch, n=generation.n)


def to_snapshot(snapshot: Snapshot) -> pb.Snapshot:
    """For a message."""
    return pb.Snapshot(generation=to_generation(snapshot.generation), step=snapshot.step)


def to_attempt(attempt: Attempt) -> pb.Attempt:
    """For a message."""
    return pb.Attempt(snapshot=to_snapshot(attempt.snapshot), number=attempt.number)
