"""This rank's part in a generation: what it was told to restore, and whether all ranks hold that."""

from __future__ import annotations

import logging
import time
from typing import Final

from ckptd_client.errors import CkptdError, ConfigError, DaemonUnavailableError, ProtocolError, RestoreError
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Gen, Hello
from ckptd_client.messages.restoring import RestoreAsk, RestoreInfo, RestoreReport
from ckptd_client.messages.saving import Enter
from ckptd_client.place import Place
from ckptd_client.session import ASK_SECONDS, CONNECT_SECONDS, REPORT_SECONDS, RETRY_SECONDS, Pending, Session

_log = logging.getLogger("ckptd")
_NO_GENERATION: Final = (0, 0)


class Member:
    """Used by the training thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.session: Session
        self.info: RestoreInfo | None = None
        self.generation: Gen = _NO_GENERATION
        self.base_seq = 0
        self.joined = False  # we hold what the generation was told to restore, and all ranks said so
        self._asked: Pending | None = None
        self._next_ask = 0.0
        self._reported: Pending | None = None

    def hello(self) -> Hello:
        """How this rank introduces itself, at first and after each reconnect."""
        place = self._place
        return Hello(
            PROTOCOL_VERSION, "trainer", place.job, place.rank, place.world_size, place.local_rank, place.world_key,
            self.generation if self.joined else _NO_GENERATION, self.base_seq,
        )  # fmt: skip

    def enter(self, place: Place) -> None:
        """This process is in another world from now on. Raises DaemonUnavailableError and its kin when no daemon is there."""
        self._place = place
        self.forget()
        self.joined, self.generation, self.base_seq = False, _NO_GENERATION, 0
        if self.session.connected:
            self.session.send(Enter(place.world_key, place.rank, place.world_size))
        else:
            self.session.connect(CONNECT_SECONDS)

    def withdraw(self) -> None:
        """This process waits for no world any more. Raises DaemonUnavailableError."""
        self.session.send(Enter("", 0, 1))

    def ask(self, bare: bool = False, timeout_seconds: float = ASK_SECONDS) -> RestoreInfo:
        """What the generation restores (``bare``: without what is in it); waits until every rank has asked.

        Raises what the daemon answers.
        """
        if self.info is None:
            reply, _ = self.session.request(RestoreAsk(self.session.next_id(), bare), timeout_seconds)
            self._take_info(reply)
        assert self.info is not None
        return self.info

    def _take_info(self, reply: Message) -> None:
        if not isinstance(reply, RestoreInfo):
            raise ProtocolError(f"the daemon answered RestoreAsk with {type(reply).__name__}")
        self.info, self.generation = reply, reply.generation

    def report(self, error: str, timeout_seconds: float = REPORT_SECONDS) -> None:
        """Tell the daemon that this rank has its part, and wait for the others; an error is told without waiting."""
        report = RestoreReport(self.session.next_id(), error[:2000])
        try:
            pending = self.session.begin(report)
            if not error:
                pending.take(timeout_seconds)
                self.joined = True
        except DaemonUnavailableError as lost:
            if not error:
                raise RestoreError(f"can't tell whether all ranks have restored: {lost}") from lost

    def forget(self) -> None:
        """Ask anew: a new daemon knows nothing of our questions."""
        self.info = self._asked = self._reported = None

    def join(self) -> bool:
        """Become part of a generation without having restored: only possible when there was nothing to restore. Never waits."""
        if time.monotonic() < self._next_ask:
            return False
        try:
            return self._join()
        except CkptdError as error:
            self.session.warn(f"not part of the job's world: {error}")
            self.forget()
            self._next_ask = time.monotonic() + RETRY_SECONDS
            return False

    def _join(self) -> bool:
        if self.info is None:
            self._asked = self._asked or self.session.begin(RestoreAsk(self.session.next_id(), False))
            if not self._asked.ready():
                return False
            self._take_info(self._asked.take(0)[0])
        if self.info is not None and self.info.seq >= 0:
            _log.error(
                "ckptd: the job has a checkpoint of step %d that this training did not start from; NOTHING IS SAVED."
                " Restart it to go on from there, or use another job id",
                self.info.step,
            )
            self.session.close()
            return False
        self._reported = self._reported or self.session.begin(RestoreReport(self.session.next_id(), ""))
        if not self._reported.ready():
            return False
        self._reported.take(0)
        self.joined = True
        return True

    def join_or_refuse(self) -> None:
        """As `join`, but waits. Raises DaemonUnavailableError, ConfigError when the job has a checkpoint, RestoreError."""
        if self.session.closed:
            raise DaemonUnavailableError("the checkpointer is closed")
        self.session.poll()
        if self.joined:
            return
        if not self.session.connected:
            raise DaemonUnavailableError("no daemon is there")
        if self.ask().seq >= 0:
            raise ConfigError("the job has a checkpoint; load() or restore() it before saving, or use another job id")
        self.report("")
