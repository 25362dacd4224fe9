"""This process's way into a job for `dcp.save`: one connection and one arena, kept, and a world of its own for each save.

DCP is told at each call which ranks take part (a process group, one process, the processes of async_save), so each save forms
a world of just these. It says to descend from the newest commit: what to load before is the caller's business in DCP.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptd_client.capture import Piece, Plan
from ckptd_client.errors import CkptdError, DaemonUnavailableError, ProtocolError, RestoreError, SaveError
from ckptd_client.handle import Handle
from ckptd_client.member import Member
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import ONE_SAVE
from ckptd_client.messages.saving import Aborted, Durable, Finished, Missed
from ckptd_client.place import Place
from ckptd_client.session import CONNECT_SECONDS, Session
from ckptd_client.staging import Stager
from ckptd_client.tree import Collected
from ckptd_client.wire import default_socket, dial

_log = logging.getLogger("ckptd")
FORM_SECONDS: Final = 120.0  # until all ranks of a save have come together
DURABLE_SECONDS: Final = 3600.0  # until what all ranks have staged is committed
_MET_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place in a save. ``token`` and ``count`` name its world, which is the same on all ranks.

    ``apart``: they come from no exchange, but from what each of them knew.
    """

    token: str
    count: int
    rank: int
    size: int
    apart: bool = False


class Saver:
    """Used by one save at a time; events come on the reader's thread."""

    def __init__(self, job: str, path: Path) -> None:
        """Use `saver_of`."""
        self.job = job
        self.local_items: list[Any] = []  # of the last plan of this rank that wasn't taken from DCP's cache
        self.token, self.count = "", 0
        self._met: dict[str, int] = {}  # how often worlds of a token that came from no exchange were formed
        self._path = path
        self._place = Place(job, 0, 1, 0, "")
        self._member = Member(self._place)
        self._pieces: list[Piece] = []
        self._stager = Stager(lambda found: Plan(found, self._pieces))
        self._session = Session(path, self._member.hello, self._on_event, self._stager.on_lost)
        self._member.session = self._stager.session = self._session
        self._inside = threading.Lock()
        self._step: int | None = None  # of the save that this rank takes part in now
        self._aborted: Aborted | None = None  # of that save, before this rank had staged anything

    def check(self) -> None:
        """Raise DaemonUnavailableError and its kin now rather than when the other ranks wait for us."""
        if not self._session.connected:
            dial(self._path, CONNECT_SECONDS).close()

    def seat_apart(self, token: str, rank: int, size: int) -> Seat:
        """A place in the next world of this token. One that did not come together counts on no rank: it can be tried again."""
        return Seat(token, self._met.get(token, 0) + 1, rank, size, apart=True)

    def enter(self, seat: Seat, step: int | None) -> int:
        """Form the world of this save with the other ranks; returns its step, one more than the newest one if none is given.

        Raises SaveError when they don't come together, DaemonUnavailableError and its kin.
        """
        self._stager.drop_held("another save began")
        self._leave()
        count = seat.count
        if not seat.apart:
            count = max(count, self.count + 1 if seat.token == self.token else 0)
            self.token, self.count = seat.token, count
        place = Place(self.job, seat.rank, seat.size, 0, f"{ONE_SAVE}{seat.token}-{count}")
        if (place.rank, place.world_size) != (self._place.rank, self._place.world_size):
            self._stager.move()
        self._place = place
        try:
            self._member.enter(place)
            info = self._member.ask(bare=True, timeout_seconds=FORM_SECONDS)
            if seat.apart:
                self._met[seat.token] = count
                if len(self._met) > _MET_MAX:
                    del self._met[next(iter(self._met))]
            if info.loss:
                _log.error("ckptd: WORK IS LOST: %s", info.loss)
            step = info.step + 1 if step is None else step
            with self._inside:
                self._step, self._aborted = step, None
            self._member.report("", FORM_SECONDS)
        except (DaemonUnavailableError, ProtocolError, RestoreError) as error:
            self._withdraw()
            raise SaveError(
                f"the ranks of this save did not come together: {error}; is another training of this job at work, and is"
                f" `ckptd coordinator --job {self.job}` running? job={self.job} rank={seat.rank} world_size={seat.size}"
            ) from error
        return step

    def _withdraw(self) -> None:
        with self._inside:
            self._step = None
        try:
            self._member.withdraw()
        except CkptdError:
            pass  # the daemon is gone, and the world with it

    def stage(self, step: int, found: Collected, pieces: list[Piece], hold: bool) -> Handle:
        """Copy this rank's share into shared memory; sealed at once, or with ``hold`` by `commit`. Raises SaveError and kin."""
        self._pieces = pieces
        self._stager.enter()
        self._stager.ready(found, wait=True)
        handle = self._stager.stage(step, self._member.generation, found, wait=True, hide=False, hold=hold)
        assert handle is not None, "it waits for a slot"
        if self._aborted is not None:  # told when there was no handle to settle
            self._stager.on_event(self._aborted)
        if not hold:
            self._leave()
        return handle

    def commit(self, handle: Handle, found: Collected) -> None:
        """Seal what is held and wait until all of it is durable. Raises SaveError."""
        try:
            if handle.open:
                self._stager.seal_held(found)
            else:
                self._stager.drop_held("it was given up before")
            handle.wait(DURABLE_SECONDS)
        finally:
            self._stager.drop_held("it was not sealed")
            self._leave()

    def miss(self, reason: str) -> None:
        """This rank can't take part in the save that it has entered: let no other rank wait for it. Never raises."""
        self._stager.drop_held(reason)
        with self._inside:
            step = self._step
        if step is not None:
            try:
                self._session.send(Missed(step, reason[:500]))
            except CkptdError:
                pass  # its daemon is gone, and the save with it
        self._leave()

    def _on_event(self, message: Message) -> None:
        mine = isinstance(message, Aborted | Durable) and message.step == self._step
        if mine and isinstance(message, Aborted):
            self._aborted = message
        self._stager.on_event(message)
        if mine:
            self._leave()

    def _leave(self) -> None:
        """Nothing more comes from this rank in this world: the next one needn't wait for it. Never raises."""
        with self._inside:
            step, self._step = self._step, None
        if step is not None:
            try:
                self._session.send(Finished(self._session.next_id()))
            except CkptdError:
                pass  # the end of the process says it, too


_savers: dict[tuple[int, str, str], Saver] = {}
_making: Final = threading.Lock()


def saver_of(job: str) -> Saver:
    """The one of this process for a job, through the daemon that CKPTD_SOCKET (or its default) names now."""
    path = default_socket()
    with _making:
        key = (os.getpid(), str(path), job)
        if key not in _savers:
            _savers[key] = Saver(job, path)
        return _savers[key]
