"""Snapshots on their way out of this rank: slots of the arena, and the handles of what lies in them."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from ckptd_client.arena import Arena
from ckptd_client.capture import Plan
from ckptd_client.errors import CkptdError, DaemonUnavailableError, ProtocolError, SaveError
from ckptd_client.messages import (
    Aborted,
    Durable,
    Gen,
    Message,
    Missed,
    Register,
    Registered,
    Released,
    Resume,
    Resumed,
    Sealed,
)  # fmt: skip
from ckptd_client.place import Place
from ckptd_client.session import AWAY_SECONDS, REQUEST_SECONDS, SLOT_SECONDS, Pending, Session
from ckptd_client.tree import Collected

_SLOTS: Final = 2  # one is held until a newer snapshot is complete on all ranks, one is free to be written
_REGISTER_AGAIN_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.5  # between two looks for the daemon's successor while waiting for a snapshot
_UNKNOWN: Final = "the daemon was lost; it may have become durable or not"


class Handle:
    """One snapshot of this rank. Saved means `durable`: committed, on all ranks."""

    def __init__(self, step: int, stager: Stager) -> None:
        self.step = step
        self._stager = stager
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
        """Return once durable. Raises SaveError when the snapshot was given up, its fate is unknown, or the time is over.

        When the daemon goes away meanwhile, its successor is looked for; it takes over what is staged.
        """
        deadline = float("inf") if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self.open:
            away_seconds = self._stager.revive()
            if away_seconds > AWAY_SECONDS:
                raise SaveError(
                    f"the daemon is away, and with it what became of step={self.step} away_seconds={away_seconds:.0f}"
                )
            left = deadline - time.monotonic()
            with self._stager.changed:
                if not self._stager.changed.wait_for(lambda: not self.open, max(0.0, min(left, _LOOK_SECONDS))) and left <= 0:
                    raise SaveError(f"not durable in time step={self.step} timeout_seconds={timeout_seconds}")
        if not self._durable:
            raise SaveError(f"the snapshot was given up: {self._reason} step={self.step}")

    def settle(self, durable: bool, reason: str | None) -> None:
        """Called under the condition; the first outcome stands."""
        if self.open:
            self._durable, self._reason = durable, None if durable else reason
            self._stager.changed.notify_all()

    def mark_staged(self) -> None:
        """The slot is sealed."""
        self._staged = True


class Stager:
    """The arena of this rank, its slots, and the snapshots in it. Events arrive on the reader's thread.

    The arena outlives the connection: a new daemon is told of it and takes over what is sealed in it.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.session: Session
        self.changed = threading.Condition()
        self.handles: dict[int, Handle] = {}
        self.arena: Arena | None = None
        self._plan: Plan | None = None
        self._free: set[int] = set()
        self._where: dict[int, tuple[str, int]] = {}  # the arena and slot of each open handle, by its step
        self._layout = -1
        self._pending: Pending | None = None
        self._not_before = 0.0
        self._lost_seconds: float | None = None  # since when the arena is without a daemon
        self._resuming: Pending | None = None
        self._early: set[tuple[int, int]] = set()  # (layout, slot) that became free before the answer to Resume was read
        self._work = threading.Lock()  # never resumed while a slot is written
        self.ever_registered = False
        self.entered_seconds = 0.0  # when training was last stopped for us, on the monotonic clock

    def on_event(self, message: Message) -> None:
        """A slot is free again, or a snapshot has its outcome."""
        with self.changed:
            if isinstance(message, Released) and 0 <= message.slot < _SLOTS:
                self._released(message)
            elif isinstance(message, (Durable, Aborted)) and message.step in self.handles:
                self._settle(message.step, isinstance(message, Durable), getattr(message, "reason", None))

    def _released(self, message: Released) -> None:
        if message.layout == self._layout:
            self._free.add(message.slot)
            self.changed.notify_all()
        elif self._lost_seconds is not None:
            # Said right after the answer to Resume, which the training thread has not looked at yet.
            self._early.add((message.layout, message.slot))

    def on_lost(self) -> None:
        """The daemon is gone. What lies in the arena is its successor's to say; of what lay in earlier ones nobody knows."""
        with self.changed:
            self._pending, self._resuming, self._layout, self._not_before = None, None, -1, 0.0
            self._free.clear()
            self._early.clear()
            if self.session.closed:
                self.arena = None
            self._lost_seconds = time.monotonic() if self.arena is not None else None
            id = self.arena.id if self.arena is not None else ""
            for step in [step for step, (arena, _) in self._where.items() if arena != id]:
                self._settle(step, False, _UNKNOWN)
            self.changed.notify_all()

    def _settle(self, step: int, durable: bool, reason: str | None) -> None:
        self.handles.pop(step).settle(durable, reason)
        self._where.pop(step, None)

    def revive(self) -> float:
        """Look for a lost daemon's successor, without waiting; returns for how many seconds there is none. Never raises."""
        lost_seconds = self._lost_seconds
        if lost_seconds is None:
            return 0.0
        self.session.poll()
        try:
            self.resume(wait=False)
        except CkptdError as error:
            self.session.warn(f"can't go on with the shared memory: {error}")
        return 0.0 if self._lost_seconds is None else time.monotonic() - lost_seconds

    def resume(self, wait: bool) -> bool:
        """Tell a new daemon of the arena. False while its answer is awaited. Raises DaemonUnavailableError."""
        if not self._work.acquire(blocking=wait):
            return False
        try:
            arena = self.arena
            if self._lost_seconds is None or arena is None:
                return True
            if self._resuming is None:
                self._resuming = self.session.begin(Resume(self.session.next_id(), arena.id))
            pending = self._resuming
            if not wait and not pending.ready():
                return False
            self._resuming = None
            try:
                reply, fds = pending.take(REQUEST_SECONDS)
            except ProtocolError as error:
                self._abandon(str(error))
                return True
            for fd in fds:
                os.close(fd)
            if not isinstance(reply, Resumed):
                raise ProtocolError(f"the daemon answered Resume with {type(reply).__name__}")
            with self.changed:
                early = {slot for layout, slot in self._early if layout == reply.layout}
                self._free = {slot for slot in reply.free if 0 <= slot < _SLOTS} | early
                self._early.clear()
                self._layout, self._lost_seconds = reply.layout, None
                for step, slot in [(step, slot) for step, (_, slot) in self._where.items() if slot in self._free]:
                    # The lost daemon may have heard the outcome, and freed the slot, without having told us.
                    self._settle(step, arena.durable_step(slot) == step, _UNKNOWN)
                self.changed.notify_all()
            return True
        finally:
            self._work.release()

    def _abandon(self, reason: str) -> None:
        """The arena is lost to the new daemon: so are the snapshots in it, unless they were committed before."""
        with self.changed:
            arena, where = self.arena, list(self._where.items())
            durable = [step for step, (_, slot) in where if arena is not None and arena.durable_step(slot) == step]
            for step, _ in where:
                self._settle(step, step in durable, f"{_UNKNOWN}: {reason}")
            self.arena, self._lost_seconds = None, None
            self._early.clear()
            self.changed.notify_all()
        for step, _ in where:
            if step not in durable:
                self.session.send(Missed(step, "its shared memory was lost with the daemon"))

    def ready(self, found: Collected, wait: bool) -> bool:
        """See to a plan and an arena for this state; False while the arena is on its way."""
        if not self.resume(wait):
            return False
        plan = self._plan
        if plan is None or not plan.fits(found):
            self._plan = plan = Plan(found, self._place.rank, self._place.world_size)
            with self.changed:
                self.arena, self._pending = None, None
        return self.arena is not None or self._register(plan, wait or not self.ever_registered)

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
            if not isinstance(reply, Registered) or len(fds) != 1:
                raise ProtocolError(f"the daemon answered Register with {type(reply).__name__} and {len(fds)} descriptors")
            arena = Arena(fds[0])
            if (arena.slots, arena.slot_bytes, arena.shape.objects) != (_SLOTS, plan.slot_bytes, len(plan.objects)):
                raise ProtocolError(f"the daemon gave an arena of another shape: {arena.shape}")
        finally:
            for fd in fds:
                os.close(fd)
        arena.keep_from_children()
        arena.prefault()
        with self.changed:
            self.arena, self._layout, self._free = arena, reply.layout, set(range(_SLOTS))
        self.ever_registered = True
        return True

    def stage(self, step: int, generation: Gen, found: Collected, wait: bool) -> Handle | None:
        """Copy the state into a free slot and seal it; None when no slot is free and ``wait`` is False."""
        with self._work:
            with self.changed:
                self.changed.wait_for(
                    lambda: self._free or self.arena is None or self._lost_seconds is not None, SLOT_SECONDS if wait else 0.0
                )
                arena, plan = self.arena, self._plan
                if arena is None or plan is None or self._lost_seconds is not None:
                    raise DaemonUnavailableError("the daemon was lost before the snapshot was taken")
                if not self._free:
                    if wait:
                        raise SaveError(f"no slot became free in time step={step} timeout_seconds={SLOT_SECONDS:g}")
                    return None
                slot, layout = self._free.pop(), self._layout
            return self._write(arena, plan, slot, layout, step, generation, found)

    def _write(
        self,
        arena: Arena,
        plan: Plan,
        slot: int,
        layout: int,
        step: int,
        generation: Gen,
        found: Collected,
    ) -> Handle:
        try:
            arena.begin(slot)
            arena.seal(slot, generation, step, plan.copy_into(arena, slot, found))
        except BaseException:
            with self.changed:
                if layout == self._layout:
                    self._free.add(slot)
            raise
        handle = Handle(step, self)
        handle.mark_staged()
        with self.changed:
            self.handles[step], self._where[step] = handle, (arena.id, slot)
            lost = self._lost_seconds is not None
        try:
            if not lost:
                self.session.send(Sealed(layout, slot, step, time.monotonic() - self.entered_seconds))
        except DaemonUnavailableError:
            pass  # its successor finds the slot sealed
        return handle
