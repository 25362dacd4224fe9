"""The torchrun agent's line to the daemon of its node (PROTOCOLS 5).

A thread keeps the connection: it dials, says hello, repeats what holds, reads; when the daemon goes away it dials again, for as
long as the agent lives. Running workers never notice. What holds is the `World` that the agent is in, and every request without
an answer. A request's number is its identity: it is sent again with the same one, so that the far end does it once. Numbers
start at random, so that those of two agents of one node, one after the other, are different too.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ckptd_client import errors
from ckptd_client.messages.agents import Complete, Formed, Join, KvAdd, KvGet, KvSet, KvValue, Leave, Regroup, Waiting, World
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Failed, Gen, Hello, Ok, Refused, Welcome
from ckptd_client.messages.saving import Notice
from ckptd_client.wire import Connection, dial

NO_GENERATION: Gen = (0, 0)
_DIAL_SECONDS = 5.0
_BACKOFF_SECONDS = (0.05, 2.0)

Request = Join | KvSet | KvAdd | KvGet
Reply = Formed | KvValue | Ok

_log = logging.getLogger("ckptd.agent")


class JobCompleteError(errors.CkptdError):
    """The job is done: whoever waits for something of it needn't."""


class JobStoppedError(errors.CkptdError):
    """The job can't go on; the message is the coordinator's diagnosis."""


class GenerationOverError(errors.CkptdError):
    """The coordinator wants a newer generation than the one that was asked about."""


class AnswerTimeoutError(errors.CkptdError):
    """No answer came before the deadline."""


class AgentLink:
    """One agent's conversation with its daemon; safe to use from several threads."""

    def __init__(self, job: str, socket: Path) -> None:
        """Start to connect in the background; never raises because no daemon is there."""
        self._job = job
        self._path = socket
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._dialed: Connection | None = None  # to be closed in close(), welcome or not
        self._connection: Connection | None = None  # after its Welcome
        self._last = secrets.randbits(40) << 20
        self._pending: dict[int, Request] = {}
        self._replies: dict[int, Reply | Failed] = {}
        self._generation = NO_GENERATION
        self._world: World | None = None
        self._regroup: Regroup | None = None
        self._complete: Complete | None = None
        self._refused: errors.CkptdError | None = None
        threading.Thread(target=self._run, name="ckptd-agent-link", daemon=True).start()

    @property
    def regroup(self) -> str | None:
        """Why the workers must not go on: the coordinator wants a newer generation, or stopped the job. None when they may."""
        stopped, wanted = self._complete, self._regroup
        if stopped is not None and stopped.failed:
            return stopped.reason
        return None if wanted is None else wanted.reason

    @property
    def complete(self) -> bool:
        """Whether the job is over, done or stopped."""
        return self._complete is not None

    def check_over(self) -> None:
        """Raises JobCompleteError or JobStoppedError once the job is over."""
        if self._complete is not None:
            raise (JobStoppedError if self._complete.failed else JobCompleteError)(self._complete.reason)

    def join(self, local_world_size: int, min_nodes: int, max_nodes: int, deadline: float, failure: str = "") -> Formed:
        """Leave the present generation (its workers are stopped) and wait for the next one.

        ``deadline`` is on `time.monotonic`. ``failure``: how its workers failed, if they did. Raises JobCompleteError,
        JobStoppedError, AnswerTimeoutError, or what a refusal says.
        """
        with self._changed:
            after = self._generation
            self._generation, self._world, self._regroup = NO_GENERATION, None, None
        number = self.begin(lambda number: Join(number, local_world_size, min_nodes, max_nodes, after, failure))
        reply = self.finish(number, deadline)
        if not isinstance(reply, Formed):
            raise errors.ProtocolError(f"a Join was answered by a {type(reply).__name__}")
        return reply

    def tell_world(self, world: World) -> None:
        """Tell the daemon which world the workers are about to get; told again to each new daemon until the next `join`."""
        with self._changed:
            self._world = world
            connection = self._connection
        self._send(connection, world)

    def begin(self, build: Callable[[int], Request]) -> int:
        """Send a request, or keep it until there is a daemon; returns its number, for `finish`."""
        with self._changed:
            self._last += 1
            request = build(self._last)
            self._pending[request.id] = request
            connection = self._connection
        self._send(connection, request)
        return request.id

    def finish(self, number: int, deadline: float) -> Reply:
        """Wait for the answer to a request until ``deadline`` on `time.monotonic`.

        Raises AnswerTimeoutError; JobCompleteError or JobStoppedError as soon as the job is over; GenerationOverError as soon
        as the coordinator wants another generation (not for a Join, which asks for just that); or what a Failed names.
        """
        with self._changed:
            try:
                while (reply := self._replies.get(number)) is None:
                    self._check_worth_waiting(number)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise AnswerTimeoutError(self._describe_silence(number))
                    self._changed.wait(left)
            finally:
                self.give_up([number])
        if isinstance(reply, Failed):
            kind = getattr(errors, reply.code, errors.CkptdError)
            known = isinstance(kind, type) and issubclass(kind, errors.CkptdError) and kind is not errors.UnsupportedStateError
            raise (kind if known else errors.CkptdError)(reply.message)
        return reply

    def give_up(self, numbers: list[int]) -> None:
        """Forget requests whose answers nobody wants any more."""
        with self._changed:
            for number in numbers:
                self._pending.pop(number, None)
                self._replies.pop(number, None)

    def leave(self, failed: bool, reason: str) -> None:
        """Say goodbye, if a daemon is there to hear it, and hang up for good."""
        self._send(self._connection, Leave(failed, reason))
        self.close()

    def close(self) -> None:
        """Hang up for good; waiters get DaemonUnavailableError."""
        self._closed.set()
        with self._changed:
            if self._dialed is not None:
                self._dialed.close()
            self._refused = errors.DaemonUnavailableError("this agent's link to its daemon is closed")
            self._changed.notify_all()

    def _check_worth_waiting(self, number: int) -> None:
        self.check_over()
        if self._refused is not None:
            raise self._refused
        if self._regroup is not None and not isinstance(self._pending.get(number), Join):
            raise GenerationOverError(self._regroup.reason)

    def _describe_silence(self, number: int) -> str:
        what = type(self._pending[number]).__name__
        if self._connection is None:
            return f"no ckptd daemon answers; start one with `ckptd daemon` socket={self._path} request={what}"
        return f"no answer: is the job's coordinator running, are enough nodes there? job={self._job} request={what}"

    def _send(self, connection: Connection | None, message: Message) -> None:
        if connection is None:
            return  # said when there is a daemon again
        try:
            connection.send(message)
        except errors.DaemonUnavailableError:
            connection.close()  # wakes the reader, which dials again

    def _run(self) -> None:
        delay, longest = _BACKOFF_SECONDS
        while not self._closed.is_set():
            try:
                connection = self._dial()
                delay = _BACKOFF_SECONDS[0]
                self._read(connection)
            except (errors.DaemonUnavailableError, errors.ProtocolError) as error:
                if not self._closed.is_set():
                    _log.info("no connection to the ckptd daemon; trying again: %s", error)
            with self._changed:
                self._connection = None
                if self._dialed is not None:
                    self._dialed.close()
            self._closed.wait(delay)
            delay = min(2 * delay, longest)

    def _dial(self) -> Connection:
        """Connect and repeat what holds: Hello with the generation, `World`, and each request without an answer."""
        connection = dial(self._path, _DIAL_SECONDS)
        with self._changed:
            self._dialed = connection
            world, generation = self._world, self._generation
            if self._closed.is_set():
                raise errors.DaemonUnavailableError("closed while dialing")
        pidfd = os.pidfd_open(os.getpid())
        try:
            connection.send(Hello(PROTOCOL_VERSION, "agent", self._job, 0, 0, 0, "", generation, -1), (pidfd,))
        finally:
            os.close(pidfd)
        welcome, _ = connection.receive()
        self._check_welcome(welcome)
        with self._changed:
            self._connection = connection
            if self._generation == generation:
                world = self._world
            repeated: list[Message] = [*([] if world is None else [world]), *self._pending.values()]
        for message in repeated:
            connection.send(message)
        return connection

    def _check_welcome(self, welcome: Message) -> None:
        refusal: errors.CkptdError | None = None
        if isinstance(welcome, Refused):
            refusal = (
                errors.VersionMismatchError(welcome.message)
                if welcome.code == "version"
                else errors.ConfigError(welcome.message)
            )
        with self._changed:
            if not self._closed.is_set():
                self._refused = refusal
            self._changed.notify_all()
        if refusal is not None:
            raise errors.DaemonUnavailableError(f"the daemon refused this agent: {refusal}")
        if not isinstance(welcome, Welcome):
            raise errors.ProtocolError(f"a Hello was answered by a {type(welcome).__name__}")

    def _read(self, connection: Connection) -> None:
        while True:
            message, fds = connection.receive()
            for fd in fds:
                os.close(fd)  # none is expected here
            with self._changed:
                self._take(message)
                self._changed.notify_all()

    def _take(self, message: Message) -> None:
        match message:
            case Formed() if message.id in self._pending:
                # here and not in join(): a Regroup right behind it must find the generation that it ends
                self._generation = message.generation
                self._replies[message.id] = message
            case Ok() | KvValue() | Failed():
                if message.id in self._pending:
                    self._replies[message.id] = message
            case Regroup() if message.generation == self._generation:
                self._regroup = message
            case Complete():
                self._complete = message
            case Waiting():
                _log.warning("this node waits for a world: %s", message.reason)
            case Notice():
                _log.warning("%s", message.text)
            case Formed() | Regroup():
                pass  # an answer that nobody waits for, or a generation that this agent is no longer in
            case _:
                raise errors.ProtocolError(f"a daemon sent a {type(message).__name__} to an agent")
