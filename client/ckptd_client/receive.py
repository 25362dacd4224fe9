"""Receiving a restore: frames come through a ring of shared memory, and are copied while others are on their way."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from ckptd_client.errors import ProtocolError, RestoreError
from ckptd_client.messages.restoring import (
    Copy,
    Filled,
    RestoreCredit,
    RestoreEnd,
    RestoreFrames,
    RestoreRead,
    RestoreRing,
    Want,
)
from ckptd_client.moving import copy_many
from ckptd_client.regions import pieces
from ckptd_client.session import FRAME_SECONDS, Session

if TYPE_CHECKING:
    import torch


def receive(session: Session, wants: list[Want], memory: Sequence[torch.Tensor]) -> None:
    """Have every want delivered into its memory, a flat uint8 tensor.

    Raises RestoreError or its kin; the memory is then in an undefined state.
    """
    if not wants:
        return
    number = session.next_id()
    stream = session.begin(RestoreRead(number, wants), stream=True)
    left = [part.numel() for part in memory]
    ring: _Ring | None = None
    while True:
        message, fds = stream.take(FRAME_SECONDS)
        if isinstance(message, RestoreRing) and len(fds) == 1 and ring is None:
            ring = _Ring(fds[0], message)
            continue
        for fd in fds:
            os.close(fd)
        if isinstance(message, RestoreEnd):
            break
        if not isinstance(message, RestoreFrames) or ring is None:
            raise ProtocolError(f"a {type(message).__name__} came in the middle of a restore")
        for frame in message.filled:
            ring.deliver(frame, memory, left)
        session.send(RestoreCredit([frame.buffer for frame in message.filled]))
    for want, count in zip(wants, left, strict=True):
        if count:
            raise RestoreError(f"the daemon left bytes of {want.fqn!r} out bytes={count}")


class _Ring:
    """The daemon's ring of frame buffers."""

    def __init__(self, fd: int, ring: RestoreRing) -> None:
        import torch

        try:
            size = ring.buffers * ring.buffer_bytes
            if ring.buffers < 1 or ring.buffer_bytes < 1 or os.fstat(fd).st_size < size:
                raise ProtocolError(f"a restore ring can't have this shape buffers={ring.buffers} bytes={ring.buffer_bytes}")
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._buffer_bytes = ring.buffer_bytes
        # keeps the mapping; both go together
        self._buffers = torch.frombuffer(mapping, dtype=torch.uint8).chunk(ring.buffers)

    def deliver(self, frame: Filled, memory: Sequence[torch.Tensor], left: list[int]) -> None:
        """Carry out a frame's copies; ``left`` counts the bytes that each want still lacks. Raises ProtocolError."""
        if not 0 <= frame.buffer < len(self._buffers):
            raise ProtocolError(f"a restore frame names buffer {frame.buffer} of {len(self._buffers)}")
        copies = frame.unpacked()
        self._check(copies, memory, left)
        sources = pieces(self._buffers[frame.buffer], [(copy.frame_offset, copy.nbytes) for copy in copies])
        destinations: list[torch.Tensor] = []
        for want, some in groupby(copies, attrgetter("want")):
            destinations += pieces(memory[want], [(copy.want_offset, copy.nbytes) for copy in some])
        copy_many(destinations, sources)  # waits, also for copies to a device: the daemon gets the buffer back

    def _check(self, copies: Sequence[Copy], memory: Sequence[torch.Tensor], left: list[int]) -> None:
        for copy in copies:
            offset, want, want_offset, count = copy
            if count < 1 or not 0 <= offset <= self._buffer_bytes - count or not 0 <= want < len(memory):
                raise ProtocolError(f"a restore frame has a copy outside of its buffer {copy}")
            if not 0 <= want_offset <= memory[want].numel() - count or count > left[want]:
                raise ProtocolError(f"a restore frame has a copy outside of its want {copy}")
            left[want] -= count
