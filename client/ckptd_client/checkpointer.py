"""The trainer's view of ckptd: `connect`, `Checkpointer`, `Handle`.

No call here is a collective of the trainer's process group. What all ranks must agree on (which checkpoint, which steps) comes
from the coordinator, through the daemon.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ckptd_client import rng
from ckptd_client.capture import Plan
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
from ckptd_client.handle import Handle
from ckptd_client.member import Member
from ckptd_client.messages.saving import Finished, Vacate
from ckptd_client.parts import Names, check, part_of
from ckptd_client.place import Place, die_with_agent, find_place
from ckptd_client.recover import PROGRESS, STATE, recover, restore_rng
from ckptd_client.regions import mesh_of
from ckptd_client.restore import Targets, merge, target_part
from ckptd_client.schedule import Follower
from ckptd_client.scopes import Scope, scope_of
from ckptd_client.session import CLOSE_SECONDS, CONNECT_SECONDS, REPORT_SECONDS, RETRY_SECONDS, Session
from ckptd_client.shares import pieces_of
from ckptd_client.staging import Stager
from ckptd_client.stream import Stream
from ckptd_client.tree import Collected, Collector, Part
from ckptd_client.wire import default_socket, dial

__all__ = ["Checkpointer", "Handle", "connect"]

_log = logging.getLogger("ckptd")


class Checkpointer:
    """Saves and restores one rank's part of a job. Made by `connect`; used by one thread."""

    def __init__(self, place: Place, path: Path) -> None:
        """Use `connect`."""
        self._place = place
        self._path = path
        self._member = Member(place)
        self._stager = Stager(self._plan)
        self._collector = Collector(place.rank)
        self._session = Session(path, self._member.hello, self._stager.on_event, self._stager.on_lost)
        self._member.session = self._stager.session = self._session
        self._parts: dict[str, tuple[Any, Scope]] = {}
        self._names = Names()
        self._restored: int | None = None
        self._follower = Follower(self._member, self._stager)
        self._stream = Stream(place.world_size, place.rank)
        self._unsaved_final: Handle | None = None
        self._closed = False
        self.rng_restored: str | None = None
        """How the last restore set the random generators: "exact", "derived", or None (nothing restored)."""

    def _plan(self, found: Collected) -> Plan:
        return Plan(found, pieces_of(found, self._place.rank, self._place.world_size))

    # ---- connection

    def open(self) -> None:
        """First try to reach the daemon; warns when none is there. Raises VersionMismatchError, ConfigError, ProtocolError."""
        try:
            if not self._place.job:
                dial(self._path, CONNECT_SECONDS).close()
                raise ConfigError("which job is this? pass connect(job=…), or set CKPTD_JOB, or give torchrun an --rdzv-id")
            self._session.connect(CONNECT_SECONDS)
        except DaemonUnavailableError as error:
            self._session.warn(f"training runs on without checkpoints: {error}")
            if not self._place.job:
                self._session.close()  # without a name there is nothing that a daemon could be told later

    @property
    def has_checkpoint(self) -> bool:
        """Whether the job has a checkpoint to restore. All ranks must ask; False, with a warning, when no daemon is there."""
        try:
            return self._session.connected and self._member.ask().seq >= 0
        except DaemonUnavailableError as error:
            self._session.warn(f"can't ask for a checkpoint: {error}")
            return False

    # ---- parts and restore

    def register(self, **parts: Any) -> None:
        """Name what is saved: modules, optimizers, schedulers, anything with state_dict() and load_state_dict().

        DTensors say by themselves who holds what. Plain tensors of a part are taken to be alike on all ranks (DDP keeps them
        so), and shared between them; buffers and values that are not tensors are stored from rank 0. What is not the world's
        is wrapped: `per_rank`, `per_index`, `over`. All ranks that hold a part register their parts in the same order.

        Raises ConfigError, or UnsupportedStateError naming the path and type of what can't be stored.
        """
        if self._restored is not None:
            raise ConfigError("register everything before restore()")
        place, new = self._place, {}
        for name, given in parts.items():
            if name in self._parts or name.startswith("ckptd") or "[" in name:
                raise ConfigError(f"this name is taken, or has a bracket in it; choose another part={name}")
            thing, scope = scope_of(name, given, place.rank, place.world_size)
            if not callable(getattr(thing, "state_dict", None)) or not callable(getattr(thing, "load_state_dict", None)):
                raise ConfigError(f"a part needs state_dict() and load_state_dict() part={name} type={type(thing).__name__}")
            check(name, thing)
            new[name] = (thing, scope)
        names = self._names.with_modules({name: thing for name, (thing, _) in new.items()})
        found = self._collector.collect(self._trees({**self._parts, **new}, names))
        self._plan(found)
        self._parts.update(new)
        self._names = names
        for name, (thing, _) in new.items():
            self._stager.hidden.attach(name, thing)

    def _trees(self, parts: Mapping[str, tuple[Any, Scope]], names: Names) -> list[Part]:
        return [part_of(name, thing, scope, names) for name, (thing, scope) in parts.items()]

    def restore(self) -> int:
        """Load the job's checkpoint into the registered parts on all ranks; returns the number of completed steps, 0 for none.

        Raises MissingStateError before anything is changed, RestoreError when any rank failed: the parts are then undefined.
        """
        if self._restored is None:
            self._restored = self._restore(self._target_parts, raw=False)
        return self._restored

    def _target_parts(self, targets: Targets) -> None:
        for name, (thing, scope) in self._parts.items():
            target_part(targets, name, thing, scope, self._names)

    def load(self, state: dict[str, Any]) -> int:
        """Load what `save` saved into ``state``; returns its step, 0 for none.

        Tensors (plain or DTensor) are filled in place, other values replaced. What only the checkpoint has is added, its
        tensors whole on CPU. Random generators are left alone. Errors as of `restore`.
        """
        self._restored = self._restore(lambda targets: merge(targets, state, targets.tree(STATE), ""), raw=True)
        return self._restored

    def _restore(self, want: Callable[[Targets], object], raw: bool) -> int:
        self._stager.join()
        found = recover(self._session, self._member, self._place.rank, self._place.world_size, want, raw)
        if found is None:
            return 0
        info, progress = found
        self._follower.completed = self._follower.answered = info.step
        self._stream.restore(progress)
        if not raw:
            self.rng_restored = restore_rng(info, progress["seed"], self._place.world_size, self._place.rank)
        _log.info("ckptd: restored step=%d seq=%d rng=%s", info.step, info.seq, self.rng_restored)
        return info.step

    # ---- steps

    def step(self, n: int) -> Handle | None:
        """Optimizer step ``n`` (1-based) is done. On a scheduled step this copies the state; returns its handle, else None.

        What only registered optimizers write (their parameters and their state, in tensors of 64 KiB and more) is copied
        behind what comes next, up to the next step of one of them. Who writes these tensors elsewhere, now and then, costs the
        snapshot under way (its handle's `wait` raises, a warning says which tensor), never its truth; who does it regularly is
        found out before. One thing is not seen: a write past torch's version counters (``.data``, numpy) of less than 16 KiB
        in a row, between two optimizer steps.

        Never waits for the daemon in a running training, and never raises because of it; only the first registration of the
        shared memory may (ResourceError when it doesn't fit).
        """
        self._stager.enter()
        self._complete(n)
        if not self._alive():
            return None
        try:
            if not self._parts:  # a trainer that saves state dicts by itself
                if self._follower.due(n):
                    self._follower.miss(n, "nothing is registered")
                return None
            return self._scheduled(n)
        except ResourceError:
            if not self._stager.ever_registered:
                raise
            self._session.warn("the daemon has no room for this state any more; nothing is saved")
        except CkptdError as error:
            self._session.warn(f"no snapshot of step {n}: {error}")
            if self._follower.due_step == n:
                self._follower.miss(n, str(error))
        return None

    def _complete(self, n: int) -> None:
        if n > self._follower.completed:
            self._follower.completed = n
            self._stream.complete()

    def _alive(self) -> bool:
        """Connected, and part of a generation. Never waits."""
        if self._closed or self._session.closed:
            return False
        if self._session.poll() and not self._member.joined:
            self._member.forget()
        if not self._session.connected:
            return False
        if not self._member.joined and self._member.join():
            self._follower.answered = self._follower.completed - 1
        return self._member.joined

    def _scheduled(self, n: int) -> Handle | None:
        if not self._stager.resume(wait=False):
            return None
        found: Collected | None = None
        if self._stager.arena is None:
            found = self._collect()
            if not self._stager.ready(found, wait=False):
                return None
        handle = self._stager.handles.get(n)
        if self._follower.due(n) and handle is None:
            found = found or self._collect()
            self._stager.ready(found, wait=True)
            handle = self._stager.stage(n, self._member.generation, found, wait=False, hide=True)
            if handle is None:
                self._follower.miss(n, "no free slot")
        if self._stager.hidden.curious:
            self._stager.hidden.watch(found or self._collect())
        return handle

    def _collect(self, state: Mapping[str, Any] | None = None) -> Collected:
        import torch

        progress = {"step": self._follower.completed, "seed": torch.initial_seed(), **self._stream.state()}
        if state is not None:
            return self._collector.collect([Part(PROGRESS, progress), Part(STATE, dict(state), whole=None)])
        parts = [Part(PROGRESS, progress), Part(rng.FQN, rng.capture(), scope="rank")]
        return self._collector.collect(parts + self._trees(self._parts, self._names))

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
        self._stager.enter()
        found = self._collect(state)
        try:
            self._member.join_or_refuse()
            self._stager.ready(found, wait=True)
            self._follower.due(step)
            handle = self._stager.stage(step, self._member.generation, found, wait=True, hide=False)
            assert handle is not None
            return handle
        except (DaemonUnavailableError, SaveError, ResourceError, ProtocolError, RestoreError) as error:
            self._session.warn(f"step {step} is not saved: {error}")
            handle = Handle(step, self._stager)
            with self._stager.changed:
                handle.settle(False, str(error))
            return handle

    # ---- data

    def batches(
        self, num_samples: int, global_batch: int, micro_batch: int | None = None, seed: int = 0, mesh: Any = None
    ) -> Iterator[tuple[list[int], float]]:
        """This rank's micro-batches of the next global batch: (dataset indices, loss scale), as in `data.micro_batches`.

        The batch is split over all ranks, or over those of ``mesh``, this rank's DeviceMesh of the dimensions along which
        samples differ: ``mesh["dp"]`` where the ranks of "tp" or the stages of a pipeline see the same ones.

        The position moves on when `step` completes; until then the same batch comes again. Raises ConfigError when
        ``num_samples`` or ``seed`` are not those that the position belongs to, or the batch can't be split.
        """
        found = mesh_of(mesh)
        if mesh is not None and found is None:
            raise ConfigError(f"batches() takes a DeviceMesh type={type(mesh).__name__}")
        return self._stream.batches(num_samples, global_batch, micro_batch, seed, found.ranks if found is not None else None)

    # ---- end

    def close(self, wait: bool = True) -> None:
        """Wait (bounded) until what is staged is durable or given up, report that this rank has finished, and disconnect.

        With ``wait`` False, only disconnects: the job counts as unfinished.
        """
        if self._closed:
            return
        self._stager.join()
        self._stager.hidden.detach()
        if wait and not self._session.closed:
            self._settle(time.monotonic() + CLOSE_SECONDS)
            self._finish()
        self._closed = True
        try:
            self._session.send(Vacate())
        except DaemonUnavailableError:
            pass  # the end of this process tells its successor
        self._session.close()
        self._stager.on_lost()  # also if there was no connection left: nobody will hear of what is open

    def _settle(self, deadline: float) -> None:
        while True:
            for handle in list(self._stager.handles.values()):
                try:
                    handle.wait(max(0.0, deadline - time.monotonic()))
                except SaveError as error:
                    _log.warning("ckptd: %s", error)
            final = self._unsaved_final
            if final is None or final.durable or not self._member.joined or time.monotonic() >= deadline:
                return
            time.sleep(RETRY_SECONDS)
            if final.open:
                continue  # it lies in shared memory still, for the daemon to come
            # The last state is still in memory: try again rather than lose it.
            _log.warning("ckptd: the last step is not durable; saving it again step=%d", final.step)
            self._unsaved_final = self._save_final(final.step)

    def _finish(self) -> None:
        if not self._member.joined:
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
    environment, and for no job id when a daemon is there; VersionMismatchError when the daemon speaks another protocol version.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_agent()
    checkpointer = Checkpointer(find_place(job), socket or default_socket())
    checkpointer.open()
    return checkpointer
