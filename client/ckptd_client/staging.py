"""Snapshots on their way out of this rank: slots of the arena, and the handles of what lies in them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from ckptd_client import devices
from ckptd_client.arena import Arena
from ckptd_client.capture import Plan
from ckptd_client.errors import CkptdError, DaemonUnavailableError, ProtocolError, ResourceError, SaveError
from ckptd_client.handle import Handle
from ckptd_client.hidden import Hidden
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import Gen
from ckptd_client.messages.saving import Aborted, Durable, Missed, Register, Registered, Released, Resume, Resumed, Sealed
from ckptd_client.session import REQUEST_SECONDS, SLOT_SECONDS, Pending, Session
from ckptd_client.tree import Collected
from ckptd_client.underway import UnderWay, begin

_log = logging.getLogger("ckptd")
_SLOTS: Final = 2  # one is held until a newer snapshot is complete on all ranks, one is free to be written
_REGISTER_AGAIN_SECONDS: Final = 30.0
_UNKNOWN: Final = "the daemon was lost; it may have become durable or not"


class Stager:
    """The arena of this rank, its slots, and the snapshots in it. Events arrive on the reader's thread.

    The arena outlives the connection: a new daemon is told of it and takes over what is sealed in it.
    """

    def __init__(self, plan: Callable[[Collected], Plan]) -> None:
        """``plan`` makes the layout of a state that has another structure than the last one. It may raise."""
        self._plan_for = plan
        self.session: Session
        self.changed = threading.Condition()
        self.handles: dict[int, Handle] = {}
        self.arena: Arena | None = None
        self._plan: Plan | None = None
        self.hidden = Hidden(self.let_write)
        self._under: UnderWay | None = None
        self._joining = threading.Lock()
        self._free: set[int] = set()
        self._where: dict[int, tuple[str, int]] = {}  # the arena and slot of each open handle, by its step
        self._layout = -1
        self._pending: Pending | None = None
        self._not_before = 0.0
        self._lost_seconds: float | None = None  # since when the arena is without a daemon
        self._resuming: Pending | None = None
        self._early: set[tuple[int, int]] = set()  # (layout, slot) that became free before the answer to Resume was read
        self._work = threading.Lock()  # never resumed while a slot is written, be it behind the training
        self.ever_registered = self._pinning_failed = False
        self.entered_seconds = 0.0  # when training was last stopped for us, on the monotonic clock

    def enter(self) -> None:
        """Training stands still for us from now on. What was copied behind it comes to its end first, but for devices' part."""
        self.hidden.end_gap()
        self.let_write()
        self.entered_seconds = time.monotonic()

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
            if self._under is not None:
                return False
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
            self.join()  # a device may write to the arena that goes
            self._plan = plan = self._plan_for(found)
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
        if plan.cuda_device is not None:
            self._pin(arena, devices.cuda_runtime(plan.cuda_device))
        with self.changed:
            self.arena, self._layout, self._free = arena, reply.layout, set(range(_SLOTS))
        self.ever_registered = True
        return True

    def _pin(self, arena: Arena, runtime: devices.Runtime) -> None:
        try:
            arena.pinned = devices.Pinned(arena.map, runtime)
        except ResourceError as error:
            if not self._pinning_failed:  # not the session's business, which warns once in an outage
                _log.warning("ckptd: each snapshot from the GPU stops training for as long as its copy takes: %s", error)
            self._pinning_failed = True

    def stage(self, step: int, generation: Gen, found: Collected, wait: bool, hide: bool, hold: bool = False) -> Handle | None:
        """Copy the state into a free slot and seal it; None when no slot is free and ``wait`` is False.

        With ``hide``, what only the optimizers write is copied behind the training, and `join` seals. With ``hold`` it is left
        to `seal_held`, which copies the objects once more, or `drop_held`.
        """
        self.join()  # a device may still be at the one before
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
            handle, under = Handle(step, self), None
            try:
                arena.begin(slot)
                hidden = self.hidden if hide else None
                under = begin(handle, arena, plan, slot, layout, generation, found, hidden, self.entered_seconds)
            except BaseException:
                self._give_back(layout, slot)
                raise
            with self.changed:
                self.handles[step], self._where[step] = handle, (arena.id, slot)
            self._under = under
        if under.copy is None and not hold:
            self.join()
        return handle

    def seal_held(self, found: Collected) -> None:
        """Seal what was staged with ``hold``, with these objects. Raises SaveError when they have outgrown their places."""
        with self._joining:
            under = self._under
            if under is not None:
                under.lengths = under.plan.copy_objects(under.arena, under.slot, found)
        self.join()

    def drop_held(self, reason: str) -> None:
        """Give up what was staged with ``hold``, if there is any."""
        with self._joining:
            under, self._under = self._under, None
            if under is not None:
                self._give_up(under, reason)

    def move(self) -> None:
        """This process has another place in its world now: its arena is no more its own."""
        with self.changed:
            if self._plan is not None:
                self._plan.drop_views()
            self._plan = self.arena = self._pending = None
            self._layout = -1
            self._free.clear()

    def _give_back(self, layout: int, slot: int) -> None:
        with self.changed:
            if layout == self._layout:
                self._free.add(slot)

    def join_for(self, handle: Handle) -> None:
        """`join` that snapshot, if this thread has begun it; on another one the state may be being written just now."""
        under = self._under
        if under is not None and under.handle is handle and under.thread == threading.get_ident():
            self.join()

    def join(self) -> None:
        """Let what is copied behind the training come to its end, and seal it. Never raises. Does nothing when nothing is under
        way.
        """
        self._join(wait=True)

    def let_write(self) -> None:
        """To be called before the state is written. As `join`, but doesn't wait for devices: what this thread tells them next
        comes after the copy, and a later call seals.
        """
        self._join(wait=False)

    def _join(self, wait: bool) -> None:
        with self._joining:
            under, begun = self._under, time.monotonic()
            if under is None:
                return
            if under.process != os.getpid():  # a forked child has neither the thread nor the mapping
                self._under = None
                return
            over, reason = under.finish(wait, self.hidden)
            if under.copy is not None:
                under.stalled_seconds += time.monotonic() - begun
            if not over:
                return
            self._under = None
            try:
                if reason is None:
                    self._seal(under, under.stalled_seconds)
                else:
                    self._give_up(under, reason)
            except DaemonUnavailableError:
                pass  # its successor finds the slot sealed, or nothing

    def _seal(self, under: UnderWay, stalled_seconds: float) -> None:
        under.arena.seal(under.slot, under.generation, under.handle.step, under.lengths)
        under.handle.mark_staged()
        with self.changed:
            lost = self._lost_seconds is not None
        if not lost:
            self.session.send(Sealed(under.layout, under.slot, under.handle.step, stalled_seconds))

    def _give_up(self, under: UnderWay, reason: str) -> None:
        step = under.handle.step
        _log.warning("ckptd: no snapshot of step %d: %s", step, reason)
        self._give_back(under.layout, under.slot)
        with self.changed:
            if self.handles.get(step) is under.handle:
                self._settle(step, False, reason)
        self.session.send(Missed(step, reason[:500]))
