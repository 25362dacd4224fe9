"""The trainer's view of ckptd: `connect`, `Checkpointer`, `Handle`.

No call here is a collective of the trainer's process group. What all ranks must agree on (which checkpoint, which steps) comes
from the coordinator, through the daemon.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ckptd_client import data, rng
from ckptd_client.arena import SEALED, WRITING, Arena, arena_bytes
from ckptd_client.capture import Collected, Part, Plan, check_objects, collect, encode_objects, part_of
from ckptd_client.errors import (
    CkptdError,
    ConfigError,
    DaemonUnavailableError,
    ProtocolError,
    ResourceError,
    RestoreError,
    SaveError,
    UnsupportedStateError,
)
from ckptd_client.messages import (
    PROTOCOL_VERSION,
    Aborted,
    Durable,
    Finished,
    Gen,
    Hello,
    Message,
    Missed,
    Register,
    Registered,
    Released,
    RestoreAsk,
    RestoreInfo,
    RestoreReport,
    Sealed,
)  # fmt: skip
from ckptd_client.restore import Targets, merge, receive, target_part
from ckptd_client.session import (
    ASK_SECONDS,
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    REPORT_SECONDS,
    REQUEST_SECONDS,
    RETRY_SECONDS,
    SLOT_SECONDS,
    Pending,
    Session,
)  # fmt: skip
from ckptd_client.typed import decode
from ckptd_client.wire import default_socket

_log = logging.getLogger("ckptd")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SLOTS: Final = 2  # one is held until a newer snapshot is complete on all ranks, one is free to be written
_REGISTER_AGAIN_SECONDS: Final = 30.0
_PROGRESS: Final = "ckptd.progress"
_STATE: Final = "ckptd.state"
_NO_GENERATION: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """This process's place in its job."""

    job: str
    rank: int
    world_size: int
    local_rank: int
    world_key: str


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


class _Stager:
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
        self._ever = False

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
        if self.arena is None and not self._register(self._plan, wait or not self._ever):
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
        self._ever = True
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
            self.session.send(Sealed(layout, slot, step, lengths))
        except DaemonUnavailableError:
            with self.changed:
                self.handles.pop(step, None)
                handle.settle(False, "the daemon was lost")
        return handle


class Checkpointer:
    """Saves and restores one rank's part of a job. Made by `connect`; used by one thread."""

    def __init__(self, place: Place, path: Path) -> None:
        """Use `connect`."""
        self._place = place
        self._stager = _Stager(place)
        self._session = Session(path, self._hello, self._stager.on_event, self._stager.on_lost)
        self._stager.session = self._session
        self._parts: dict[str, Any] = {}
        self._info: RestoreInfo | None = None
        self._generation: Gen = _NO_GENERATION
        self._base_seq = 0
        self._joined = False  # we hold what the generation was told to restore, and all ranks said so
        self._asked: Pending | None = None
        self._reported: Pending | None = None
        self._restored: int | None = None
        self._completed = 0  # furthest completed step
        self._due_step = 0  # the last one that was scheduled
        self._answered = 0  # every scheduled step up to here was sealed or reported as missed
        self._position = 0  # samples consumed by the whole job
        self._taken = 0  # of which the current step's global batch is not counted yet
        self._stream: tuple[int, int] | None = None  # (num_samples, seed)
        self._unsaved_final: Handle | None = None
        self._closed = False
        self.rng_restored: str | None = None
        """How the last restore set the random generators: "exact", "derived", or None (nothing restored)."""

    # ---- connection

    def _hello(self) -> Hello:
        place = self._place
        return Hello(
            PROTOCOL_VERSION, "trainer", place.job, place.rank, place.world_size, place.local_rank, place.world_key,
            self._generation if self._joined else _NO_GENERATION, self._base_seq,
        )  # fmt: skip

    def open(self) -> None:
        """First try to reach the daemon; warns when none is there. Raises VersionMismatchError, ConfigError, ProtocolError."""
        try:
            self._session.connect(CONNECT_SECONDS)
        except DaemonUnavailableError as error:
            self._session.warn(f"training runs on without checkpoints: {error}")

    def _ask(self) -> RestoreInfo:
        if self._info is None:
            reply, _ = self._session.request(RestoreAsk(self._session.next_id()), ASK_SECONDS)
            self._take_info(reply)
        assert self._info is not None
        return self._info

    def _take_info(self, reply: Message) -> None:
        if not isinstance(reply, RestoreInfo):
            raise ProtocolError(f"the daemon answered RestoreAsk with {type(reply).__name__}")
        self._info, self._generation = reply, reply.generation

    @property
    def has_checkpoint(self) -> bool:
        """Whether the job has a checkpoint to restore. All ranks must ask; False, with a warning, when no daemon is there."""
        try:
            return self._session.connected and self._ask().seq >= 0
        except DaemonUnavailableError as error:
            self._session.warn(f"can't ask for a checkpoint: {error}")
            return False

    # ---- parts and restore

    def register(self, **parts: Any) -> None:
        """Name what is saved: modules, optimizers, schedulers, anything with state_dict() and load_state_dict().

        In a world of several ranks plain tensors are taken to be replicated (DDP keeps them so), and shared between the ranks;
        buffers and values that are not tensors are stored from rank 0. Raises ConfigError, or UnsupportedStateError naming the
        path and type of what can't be stored.
        """
        if self._restored is not None:
            raise ConfigError("register everything before restore()")
        for name, thing in parts.items():
            if name in self._parts or name.startswith("ckptd"):
                raise ConfigError(f"this name is taken; choose another part={name}")
            if not callable(getattr(thing, "state_dict", None)) or not callable(getattr(thing, "load_state_dict", None)):
                raise ConfigError(f"a part needs state_dict() and load_state_dict() part={name} type={type(thing).__name__}")
        found = collect([part_of(name, thing) for name, thing in {**self._parts, **parts}.items()])
        check_objects(found)
        Plan(found, encode_objects(found, self._place.rank), self._place.rank, self._place.world_size)
        self._parts.update(parts)

    def restore(self) -> int:
        """Load the job's checkpoint into the registered parts on all ranks; returns the number of completed steps, 0 for none.

        Raises MissingStateError before anything is changed, RestoreError when any rank failed: the parts are then undefined.
        """
        if self._restored is None:
            self._restored = self._restore(self._target_parts, True)
        return self._restored

    def _target_parts(self, targets: Targets) -> None:
        for name, part in self._parts.items():
            target_part(targets, name, part)

    def load(self, state: dict[str, Any]) -> int:
        """Load what `save` saved into ``state``; returns its step, 0 for none.

        Tensors (plain or DTensor) are filled in place, other values replaced. What only the checkpoint has is added, its
        tensors whole on CPU. Random generators are left alone. Errors as of `restore`.
        """
        self._restored = self._restore(lambda targets: merge(targets, state, targets.tree(_STATE), ""), False)
        return self._restored

    def _restore(self, want: Callable[[Targets], object], with_rng: bool) -> int:
        try:
            if not self._session.connected and self._session.ever_connected:
                self._session.connect(
                    CONNECT_SECONDS
                )  # it was there a moment ago: starting at 0 now would lose work in silence
            if not self._session.connected:
                _log.warning("ckptd: NOT CONNECTED to a daemon: starting at step 0, whatever checkpoints the job may have")
                return 0
            info = self._ask()
        except DaemonUnavailableError as error:
            raise RestoreError(f"can't learn what to restore: {error}") from error
        try:
            targets = Targets(info, self._place.world_size)
            if info.seq >= 0:
                self._check_progress(targets, with_rng)
                want(targets)
                receive(self._session, targets)
                for finish in targets.finish:
                    finish()
        except BaseException as error:
            self._report(f"{type(error).__name__}: {error}")
            if isinstance(error, DaemonUnavailableError):
                raise RestoreError(f"the restore broke off: {error}") from error
            raise
        self._report("")
        if info.seq >= 0:
            self._take_over(targets, with_rng)
        return info.step

    def _check_progress(self, targets: Targets, with_rng: bool) -> None:
        progress = targets.tree(_PROGRESS)
        if progress["step"] != targets.info.step:
            raise RestoreError(f"the checkpoint says step={progress['step']}, the log says step={targets.info.step}")
        if with_rng == (_STATE in targets.info.objects):
            made, use = ("save", "load") if with_rng else ("step", "restore")
            raise RestoreError(f"this checkpoint was made by {made}(); load it with {use}() step={targets.info.step}")

    def _take_over(self, targets: Targets, with_rng: bool) -> None:
        info, progress = targets.info, targets.tree(_PROGRESS)
        self._base_seq = info.seq + 1
        self._completed = self._answered = info.step
        self._position, self._stream, self._taken = progress["position"], progress["stream"], 0
        if with_rng:
            stored = info.rank_objects.get(rng.FQN)
            exact = info.world_size == self._place.world_size and stored is not None and rng.restore(decode(stored))
            if not exact:
                rng.derive(progress["seed"], info.step, self._place.rank)
            self.rng_restored = "exact" if exact else "derived"
        _log.info("ckptd: restored step=%d seq=%d rng=%s", info.step, info.seq, self.rng_restored)

    def _report(self, error: str) -> None:
        """Tell the daemon that this rank has its part, and wait for the others; an error is told without waiting."""
        report = RestoreReport(self._session.next_id(), error[:2000])
        try:
            pending = self._session.begin(report)
            if not error:
                pending.take(REPORT_SECONDS)
                self._joined = True
        except DaemonUnavailableError as lost:
            if not error:
                raise RestoreError(f"can't tell whether all ranks have restored: {lost}") from lost

    # ---- steps

    def step(self, n: int) -> Handle | None:
        """Optimizer step ``n`` (1-based) is done. On a scheduled step this copies the state; returns its handle, else None.

        Never waits for the daemon in a running training, and never raises because of it; only the first registration of the
        shared memory may (ResourceError when it doesn't fit).
        """
        self._complete(n)
        if not self._alive():
            return None
        try:
            if not self._parts:  # a trainer that saves state dicts by itself
                if self._due(n):
                    self._miss(n, "nothing is registered")
                return None
            return self._scheduled(n)
        except ResourceError:
            if not self._stager._ever:
                raise
            self._session.warn("the daemon has no room for this state any more; nothing is saved")
        except CkptdError as error:
            self._session.warn(f"no snapshot of step {n}: {error}")
            if self._due_step == n:
                self._miss(n, str(error))
        return None

    def _complete(self, n: int) -> None:
        if n > self._completed:
            self._completed = n
            self._position += self._taken
            self._taken = 0

    def _alive(self) -> bool:
        """Connected, and part of a generation."""
        if self._closed or self._session.closed:
            return False
        if self._session.poll() and not self._joined:
            self._info = self._asked = self._reported = None
        return self._session.connected and (self._joined or self._join())

    def _join(self) -> bool:
        """Become part of a generation without having restored: only possible when there was nothing to restore. Never waits."""
        if self._info is None:
            self._asked = self._asked or self._session.begin(RestoreAsk(self._session.next_id()))
            if not self._asked.ready():
                return False
            try:
                self._take_info(self._asked.take(0)[0])
            except CkptdError as error:
                self._session.warn(f"not part of the job's world: {error}")
                self._asked = None
                return False
        if self._info is not None and self._info.seq >= 0:
            _log.error(
                "ckptd: the job has a checkpoint of step %d that this training did not start from; NOTHING IS SAVED."
                " Restart it to go on from there, or use another job id",
                self._info.step,
            )
            self._session.close()
            return False
        self._reported = self._reported or self._session.begin(RestoreReport(self._session.next_id(), ""))
        if not self._reported.ready():
            return False
        try:
            self._reported.take(0)
        except CkptdError as error:
            self._session.warn(f"not part of the job's world: {error}")
            self._info = self._asked = self._reported = None
            return False
        self._joined = True
        self._answered = self._completed - 1
        return True

    def _scheduled(self, n: int) -> Handle | None:
        found: Collected | None = None
        if self._stager.arena is None:
            found = self._collect()
            if self._stager.ready(found, wait=False) is None:
                return None
        due = self._due(n)
        if not due or n in self._stager.handles:
            return self._stager.handles.get(n)
        found = found or self._collect()
        bodies = self._stager.ready(found, wait=True)
        assert bodies is not None
        handle = self._stager.stage(n, self._generation, found, bodies, wait=False)
        if handle is None:
            self._miss(n, "no free slot")
        return handle

    def _due(self, n: int) -> bool:
        """Note step ``n`` in the arena, report scheduled steps that went by unanswered, and say whether ``n`` is scheduled."""
        arena = self._stager.arena
        if arena is None:
            return False
        arena.step = max(arena.step, n)
        schedule = arena.read_schedule()
        if schedule is None or schedule.generation != self._generation or schedule.every <= 0:
            return False
        passed = range(schedule.first, n, schedule.every)
        for step in passed[-16:]:  # older ones are long settled
            if step > self._answered:
                self._miss(step, "this rank was past the step when it could know")
        due = schedule.includes(n) and n > self._answered
        self._answered = max(self._answered, n)
        if due:
            self._due_step = n
        return due

    def _miss(self, step: int, reason: str) -> None:
        try:
            self._session.send(Missed(step, reason[:500]))
        except DaemonUnavailableError:
            pass  # its daemon is gone: the snapshot dies without us

    def _collect(self, state: Mapping[str, Any] | None = None) -> Collected:
        import torch

        progress = {
            "step": self._completed, "seed": torch.initial_seed(), "position": self._position, "stream": self._stream,
        }  # fmt: skip
        if state is not None:
            return collect([Part(_PROGRESS, progress), Part(_STATE, dict(state), whole=None)])
        parts = [Part(_PROGRESS, progress), Part(rng.FQN, rng.capture(), scope="rank")]
        return collect(parts + [part_of(name, thing) for name, thing in self._parts.items()])

    def steps(self, total: int) -> Iterator[int]:
        """Restore, then yield the steps to do, up to ``total``; saves as scheduled, and after the last one in any case."""
        done = self.restore()
        handle = None
        for n in range(done + 1, total + 1):
            yield n
            handle = self.step(n)
        if done < total and handle is None:
            handle = self._save_final(total)
        self._unsaved_final = handle

    def _save_final(self, step: int) -> Handle | None:
        try:
            return self._save(None, step)
        except UnsupportedStateError as error:  # the training is over; its user may still want to do something with the state
            _log.error("ckptd: THE LAST STEP IS NOT SAVED: %s step=%d", error, step)
            return None

    # ---- raw state

    def save(self, state: Mapping[str, Any], step: int) -> Handle:
        """Save a state dict after ``step`` steps. All ranks must call it for the same step; waits for a free slot, never skips.

        Plain tensors are stored whole from rank 0 (parameters can't be told from buffers here), DTensors by their shards.
        Without a daemon the handle's `wait` raises SaveError. Raises UnsupportedStateError, ConfigError.
        """
        self._complete(step)
        return self._save(state, step)

    def _save(self, state: Mapping[str, Any] | None, step: int) -> Handle:
        found = self._collect(state)
        try:
            self._join_or_refuse()
            bodies = self._stager.ready(found, wait=True)
            self._due(step)
            assert bodies is not None
            handle = self._stager.stage(step, self._generation, found, bodies, wait=True)
            assert handle is not None
            return handle
        except (DaemonUnavailableError, SaveError, ResourceError, ProtocolError, RestoreError) as error:
            self._session.warn(f"step {step} is not saved: {error}")
            handle = Handle(step, self._stager.changed)
            with self._stager.changed:
                handle.settle(False, str(error))
            return handle

    def _join_or_refuse(self) -> None:
        if self._closed or self._session.closed:
            raise DaemonUnavailableError("the checkpointer is closed")
        self._session.poll()
        if self._joined:
            return
        if not self._session.connected:
            raise DaemonUnavailableError("no daemon is there")
        if self._ask().seq >= 0:
            raise ConfigError("the job has a checkpoint; load() or restore() it before saving, or use another job id")
        self._report("")

    # ---- data

    def batches(
        self, num_samples: int, global_batch: int, micro_batch: int | None = None, seed: int = 0
    ) -> Iterator[tuple[list[int], float]]:
        """This rank's micro-batches of the next global batch: (dataset indices, loss scale), as in `data.micro_batches`.

        The position moves on when `step` completes; until then the same batch comes again. Raises ConfigError when
        ``num_samples`` or ``seed`` are not those that the position belongs to, or the batch can't be split over the ranks.
        """
        if num_samples < 1:
            raise ConfigError(f"a dataset has at least one sample num_samples={num_samples}")
        if self._stream is not None and self._stream != (num_samples, seed):
            raise ConfigError(
                f"the position in the data belongs to num_samples={self._stream[0]} seed={self._stream[1]}, not to"
                f" num_samples={num_samples} seed={seed}"
            )
        data.split(global_batch, self._place.world_size, self._place.rank, micro_batch)
        self._stream, self._taken = (num_samples, seed), global_batch
        return data.micro_batches(
            self._position, num_samples, global_batch, self._place.world_size, self._place.rank, micro_batch, seed
        )

    # ---- end

    def close(self, wait: bool = True) -> None:
        """Wait (bounded) until what is staged is durable or given up, report that this rank has finished, and disconnect.

        With ``wait`` False, only disconnects: the job counts as unfinished.
        """
        if self._closed:
            return
        if wait and not self._session.closed:
            self._settle(time.monotonic() + CLOSE_SECONDS)
            self._finish()
        self._closed = True
        self._session.close()

    def _settle(self, deadline: float) -> None:
        while True:
            for handle in list(self._stager.handles.values()):
                try:
                    handle.wait(max(0.0, deadline - time.monotonic()))
                except SaveError as error:
                    _log.warning("ckptd: %s", error)
            final = self._unsaved_final
            if final is None or final.durable or not self._joined or time.monotonic() >= deadline:
                return
            # The last state is still in memory: try again rather than lose it.
            _log.warning("ckptd: the last step is not durable; saving it again step=%d", final.step)
            time.sleep(RETRY_SECONDS)
            self._unsaved_final = self._save_final(final.step)

    def _finish(self) -> None:
        if not self._joined:
            return
        try:
            self._session.request(Finished(self._session.next_id()), REPORT_SECONDS)
        except CkptdError as error:
            _log.warning("ckptd: could not report that this rank has finished: %s", error)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(wait=kind is None)


def connect(job: str | None = None, *, socket: Path | None = None) -> Checkpointer:
    """Find the local daemon. ``job`` defaults to CKPTD_JOB, then TORCHELASTIC_RUN_ID; the place in the world comes from
    torchrun's variables.

    Never raises because no daemon is there: training runs on, with one warning. Raises ConfigError for a bad job id or
    environment, VersionMismatchError when the daemon speaks another protocol version.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_agent()
    checkpointer = Checkpointer(_place(job), socket or default_socket())
    checkpointer.open()
    return checkpointer


def _place(job: str | None) -> Place:
    env = os.environ
    run = env.get("TORCHELASTIC_RUN_ID")
    name = job or env.get("CKPTD_JOB") or (run if run != "none" else None)  # "none" is torchrun's own default
    if name is None:
        raise ConfigError("which job is this? pass connect(job=…), or set CKPTD_JOB, or give torchrun an --rdzv-id")
    if not _JOB.fullmatch(name):
        raise ConfigError(f"a job id has 1 to 64 letters, digits, '_' and '-' job={name!r}")
    try:
        world = int(env.get("WORLD_SIZE", "1"))
        rank, local = int(env.get("RANK", "0")), int(env.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ConfigError(f"RANK, LOCAL_RANK and WORLD_SIZE must be numbers error={error}") from error
    if not 0 <= rank < world or local < 0:
        raise ConfigError(f"RANK must be below WORLD_SIZE rank={rank} world_size={world}")
    if "WORLD_SIZE" not in env:
        return Place(name, 0, 1, 0, f"alone-{secrets.token_hex(8)}")
    try:
        return Place(name, rank, world, local, f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}")
    except KeyError as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but {error.args[0]} is not; start with torchrun, or set all of its variables"
        ) from error


def _die_with_agent() -> None:
    """A killed agent must leave no orphan workers (FACTS, torch elastic): PR_SET_PDEATHSIG."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
