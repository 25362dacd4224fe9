"""Snapshots on their way out of this rank: slots of the arena, and the handles of what lies in them."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from ckptd_client.arena import SEALED, WRITING, Arena, arena_bytes
from ckptd_client.capture import Collected, Plan, check_objects, encode_objects
from ckptd_client.errors import DaemonUnavailableError, ProtocolError, SaveError
from ckptd_client.messages import Aborted, Durable, Gen, Message, Register, Registered, Released, Sealed
from ckptd_client.place import Place
from ckptd_client.session import REQUEST_SECONDS, SLOT_SECONDS, Pending, Session

_SLOTS: Final = 2  # one is held until a newer snapshot is complete on all ranks, one is free to be written
_REGISTER_AGAIN_SECONDS: Final = 30.0


class Handle:
    """One snapshot of this rank. Saved means `durable`: committed, on all ranks."""

    def __init__(self, step: int, changed: threading.Condition) -> None:
        self.step = step
        self._changed = changed
        self._durable = False
        self._reason: str | None = None
        self._staged = False

    @property
    def staged(self) -> bool:
        """Whether this rank's state is in shared memory, complete. Says nothing about other ranks."""
        return self._staged

    @property
    def durable(self) -> bool:
        """Whether the snapshot of all ranks is committed in the store."""
        return self._durable

    @property
    def open(self) -> bool:
        """Whether neither is known yet: durable, or given up."""
        return not self._durable and self._reason is None

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Return once durable. Raises SaveError when the snapshot was given up, its fate is unknown, or the time is over."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.open, timeout_seconds):
                raise SaveError(f"not durable in time step={self.step} timeout_seconds={timeout_seconds}")
            if not self._durable:
                raise SaveError(f"the snapshot was given up: {self._reason} step={self.step}")

    def settle(self, durable: bool, reason: str | None) -> None:
        """Called under the condition; the first outcome stands."""
        if self.open:
            self._durable, self._reason = durable, None if durable else reason
            self._changed.notify_all()

    def mark_staged(self) -> None:
        """The slot is sealed."""
        self._staged = True


class Stager:
    """The arena of this rank, its slots, and the snapshots in it. Events arrive on the reader's thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.session: Session
        self.changed = threading.Condition()
        self.handles: dict[int, Handle] = {}
        self.arena: Arena | None = None
        self._plan: Plan | None = None
        self._free: set[int] = set()
        self._layout = -1
        self._pending: Pending | None = None
        self._not_before = 0.0
        self.ever_registered = False
        self.entered_seconds = 0.0  # when training was last stopped for us, on the monotonic clock

    def on_event(self, message: Message) -> None:
        """A slot is free again, or a snapshot has its outcome."""
        with self.changed:
            if isinstance(message, Released) and message.layout == self._layout and 0 <= message.slot < _SLOTS:
                self._free.add(message.slot)
                self.changed.notify_all()
            elif isinstance(message, (Durable, Aborted)) and message.step in self.handles:
                handle = self.handles.pop(message.step)
                handle.settle(isinstance(message, Durable), getattr(message, "reason", None))

    def on_lost(self) -> None:
        """The daemon is gone, and with it our knowledge of what became of the snapshots."""
        with self.changed:
            for handle in self.handles.values():
                handle.settle(False, "the daemon was lost; it may have become durable or not")
            self.handles.clear()
            self.arena, self._pending, self._layout, self._not_before = None, None, -1, 0.0
            self._free.clear()
            self.changed.notify_all()

    def ready(self, found: Collected, wait: bool) -> dict[str, bytes] | None:
        """See to a plan and an arena for this state; returns the encoded objects, or None while the arena is on its way."""
        bodies = encode_objects(found, self._place.rank)
        if self._plan is None or self._plan.structure != found.structure() or not self._plan.fits(bodies):
            check_objects(found)
            self._plan = Plan(found, bodies, self._place.rank, self._place.world_size)
            with self.changed:
                self.arena, self._pending = None, None
        if self.arena is None and not self._register(self._plan, wait or not self.ever_registered):
            return None
        return bodies

    def _register(self, plan: Plan, wait: bool) -> bool:
        if self._pending is None:
            if not wait and time.monotonic() < self._not_before:
                return False
            plan.drop_views()
            self._not_before = time.monotonic() + _REGISTER_AGAIN_SECONDS
            with self.changed:
                self._layout = -1
                self._free.clear()
            self._pending = self.session.begin(Register(self.session.next_id(), _SLOTS, plan.slot_bytes, plan.items))
        pending = self._pending
        if not wait and not pending.ready():
            return False
        self._pending = None
        reply, fds = pending.take(REQUEST_SECONDS)
        try:
            if not isinstance(reply, Registered) or len(fds) != 1 or reply.arena_bytes != arena_bytes(_SLOTS, plan.slot_bytes):
                raise ProtocolError(f"the daemon answered Register with {type(reply).__name__} and {len(fds)} descriptors")
            arena = Arena(fds[0], _SLOTS, plan.slot_bytes)
            arena.check_header()
        finally:
            for fd in fds:
                os.close(fd)
        arena.keep_from_children()
        arena.prefault()
        with self.changed:
            self.arena, self._layout, self._free = arena, reply.layout, set(range(_SLOTS))
        self.ever_registered = True
        return True

    def stage(self, step: int, generation: Gen, found: Collected, bodies: dict[str, bytes], wait: bool) -> Handle | None:
        """Copy the state into a free slot and seal it; None when no slot is free and ``wait`` is False."""
        with self.changed:
            self.changed.wait_for(lambda: self._free or self.arena is None, SLOT_SECONDS if wait else 0.0)
            arena, plan = self.arena, self._plan
            if arena is None or plan is None:
                raise DaemonUnavailableError("the daemon was lost before the snapshot was taken")
            if not self._free:
                if wait:
                    raise SaveError(f"no slot became free in time step={step} timeout_seconds={SLOT_SECONDS:g}")
                return None
            slot, layout = self._free.pop(), self._layout
        try:
            arena.mark(slot, WRITING, generation, step)
            lengths = plan.copy_into(arena, slot, found, bodies)
            arena.mark(slot, SEALED, generation, step)
        except BaseException:
            with self.changed:
                if layout == self._layout:
                    self._free.add(slot)
            raise
        handle = Handle(step, self.changed)
        handle.mark_staged()
        with self.changed:
            self.handles[step] = handle
        try:
            self.session.send(Sealed(layout, slot, step, lengths, time.monotonic() - self.entered_seconds))
        except DaemonUnavailableError:
            with self.changed:
                self.handles.pop(step, None)
                handle.settle(False, "the daemon was lost")
        return handle
