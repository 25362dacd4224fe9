"""The coordinator without sockets: messages and results in, decisions enacted, messages out.

Everything here runs on one event loop and never waits: the log's work is queued, each node's messages are queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.coordinator.actions import Adopt, CompleteJob, FormGeneration, FormRanks, Wait
from ckptd.coordinator.alive import blind_nodes
from ckptd.coordinator.apply import apply, attach, detach
from ckptd.coordinator.chronicle import log_action, note_action, note_settled, note_trouble
from ckptd.coordinator.decide import decide
from ckptd.coordinator.durable import LogResult, Pinned, Quarantined, Settled, TailAbsent, Trouble
from ckptd.coordinator.enact import LogJob, enact
from ckptd.coordinator.events import Events
from ckptd.coordinator.kv import KvStores
from ckptd.coordinator.membership import waiting
from ckptd.coordinator.metrics import CoordinatorMetrics
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.report import status_of
from ckptd.coordinator.restoring import holder_in_use
from ckptd.coordinator.state import Ended, Outcome, State
from ckptd.coordinator.tell import messages_for
from ckptd.coordinator.trouble import troubles_of
from ckptd.coordinator.world import Target
from ckptd.model.canonical import MAX_NUMBER
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.troubles import Trouble as Concern
from ckptd.troubles import Troubles

MAX_ACTIONS_PER_STEP = 10_000
LOOK_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Link(Protocol):
    """The way to one node."""

    def send(self, message: pb.ToNode) -> bool:
        """Queue a message; False when the queue is full, and the link is closed then."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...


class LogView(Protocol):
    """What the engine asks of the log's worker."""

    def submit(self, job: LogJob) -> None: ...

    def outcome_of(self, attempt: Attempt) -> Outcome | None: ...

    def candidate(self) -> tuple[Target, Generation]: ...

    def beside(self) -> tuple[Target, tuple[Target, ...]]: ...

    def referable(self, without: int | None) -> tuple[int, ...]: ...


class Engine:
    """State, decisions and links of one job. ``wake`` is called when ``step`` should run soon."""

    def __init__(
        self,
        epoch: int,
        options: CoordinatorOptions,
        log: LogView,
        clock: Clock = SYSTEM_CLOCK,
        wake: Callable[[], None] = lambda: None,
        metrics: CoordinatorMetrics | None = None,
    ) -> None:
        self._options = options
        self._log = log
        self._clock = clock
        self._wake = wake
        self._links: dict[str, Link] = {}
        self._kv = KvStores()
        self._reasons: dict[str, str] = {}
        self._reasons_since: dict[str, float] = {}
        self.events = Events(epoch)
        self.metrics = metrics or CoordinatorMetrics("")
        self._looked_seconds = 0.0
        self.troubles = Troubles(clock)
        self.troubles.heard = self._heard
        self._stepped_seconds = clock.monotonic()
        self.state = State(epoch, clock.monotonic(), outcome_of=log.outcome_of)
        self._look_at_log()

    @property
    def over(self) -> Ended | None:
        """How the job ended, if nobody has started it again since."""
        return None if waiting(self._clock.monotonic(), self.state, self._options) else self.state.over

    @property
    def drained(self) -> bool:
        """Is nothing of a job that is over on its way to the store any more?"""
        return not self.state.snapshots and not self.state.log_busy

    def attach(self, node: str, incarnation: str, link: Link) -> None:
        """A daemon's stream is there; it replaces an earlier one of the same node."""
        earlier = self._links.pop(node, None)
        if earlier is not None:
            _log.info("a newer stream replaces the node's earlier one", node=node)
            earlier.close()
            self._kv.forget(node)
        self._links[node] = link
        attach(self.state, node, incarnation, self._clock.monotonic())
        _log.info("node connected", node=node, incarnation=incarnation)
        self.events.add("connected", f"the daemon of node {node} connected")
        self._wake()

    def detach(self, node: str, link: Link) -> None:
        """A stream has ended; nothing happens if it was replaced before."""
        if self._links.get(node) is link:
            del self._links[node]
            detach(self.state, node)
            self._kv.forget(node)
            _log.info("node disconnected", node=node)
            self.events.add("disconnected", f"the daemon of node {node} disconnected")
            self._wake()

    def receive(self, node: str, link: Link, message: pb.FromNode) -> None:
        """One message. Raises ProtocolError; the caller ends the stream then. Late ones of a replaced stream are dropped."""
        if self._links.get(node) is not link:
            return
        now = self._clock.monotonic()
        if message.WhichOneof("body") in ("kv_set", "kv_add", "kv_get"):
            self.state.nodes[node].last_heard_seconds = now
            self._kv.receive(node, message, lambda reply: self._send(node, link, reply))
            return
        apply(self.state, node, message, now)
        self._wake()

    def close_links(self) -> None:
        """End all streams once what was queued has gone out."""
        for link in self._links.values():
            link.close()
        self.events.close()

    def log_done(self, result: LogResult) -> None:
        """The log's worker reports."""
        state, now = self.state, self._clock.monotonic()
        if isinstance(result, Trouble):
            state.log_trouble = result.reason
            self._wake()
            return
        state.log_busy, state.log_trouble = state.log_busy - 1, None
        self._look_at_log()
        match result:
            case TailAbsent():
                state.permit_asked, state.permit_seconds = False, now
            case Settled(attempt, outcome):
                self.metrics.settled(state.snapshots.get(attempt.snapshot), outcome, now, time.time())
                state.settle(attempt, outcome)
                if outcome.seq is not None:
                    state.begin_anew()
                world = state.world
                if outcome.seq is not None and world is not None and attempt.snapshot.generation == world.id:
                    world.last_commit_seconds = now
                _log.info("attempt settled", attempt=str(attempt), seq=outcome.seq, reason=outcome.reason)
                note_settled(self.events, attempt, outcome)
            case Quarantined(seq, True):
                self.events.add("quarantined", f"record {seq} is quarantined: it is not restored again")
            case Quarantined(seq, False):
                self.events.add("not quarantined", f"record {seq} was called damaged by a node, but is whole as seen from here")
                world = state.world
                if world is not None and world.spoilt and world.target is not None and world.target.seq == seq:
                    world.spoilt = world.counted = False  # it failed for its own reasons, and counts
            case Pinned(seq, holder, done):
                world = state.world
                if done and world is not None and world.holder == holder:
                    world.pinned = seq
        self._wake()

    def step(self) -> None:
        """Decide and enact until there is nothing left but waiting; then tell every node what it should know."""
        now = self._clock.monotonic()
        self._excuse_own_absence(now)
        for _ in range(MAX_ACTIONS_PER_STEP):
            actions = decide(now, self.state, self._options)
            urgent = next((action for action in actions if not isinstance(action, Wait)), None)
            if urgent is None:
                self._log_reasons({action.topic: action.reason for action in actions if isinstance(action, Wait)})
                break
            log_action(urgent, self.state.fruitless)
            job = enact(self.state, urgent, now)
            if job is not None:
                self._log.submit(job)
            self._after(urgent)
            note_action(self.events, urgent, self.state.world)
        else:
            raise AssertionError("decide() wants the same thing again and again")
        self.state.bases = self._log.referable(self.state.stepped_over)
        self._tell()
        self.troubles.only(troubles_of(now, self.state, self._options, self.metrics.store.hanging()))
        self.metrics.watch(self.state.world, now)
        if now - self._looked_seconds >= LOOK_SECONDS:
            self._looked_seconds = now
            self.metrics.look(self.status(""))

    def status(self, job: str) -> pb.StatusReply:
        """How it is, for people."""
        waits = {topic: (reason, self._reasons_since[topic]) for topic, reason in self._reasons.items()}
        return status_of(self._clock.monotonic(), job, self.state, self._options, waits, self.troubles.all())

    def heard_of_store(self, trouble: str | None) -> None:
        """What came of the last small write to the store."""
        self.state.hint_trouble = trouble

    def pin_in_use(self) -> str | None:
        """The holder of the pin of the restore that is under way or to come; None: no restore's pin is needed."""
        return holder_in_use(self.state)

    def settled(self) -> Snapshot | None:
        """The snapshot before which every attempt is settled, as far as anybody who is left knows; None: nobody can tell.

        It is of the current world: the first that is open, or one that lies beyond all there can be.
        """
        world, first = self.state.world, min(self.state.snapshots, default=None)
        if world is None or not (world.target or world.schedule) or (first is not None and first.generation < world.id):
            return None
        return Snapshot(world.id, MAX_NUMBER) if first is None else first

    def blind(self) -> list[str]:
        """Silent members of the running generation."""
        return blind_nodes(self._clock.monotonic(), self.state, self._options)

    def _excuse_own_absence(self, now: float) -> None:
        """If we did not look for long (stopped, starved, suspended), silence is ours: every lease starts anew."""
        if now - self._stepped_seconds > self._options.lease_seconds / 2:
            _log.warning("the coordinator itself was away; leases start anew", seconds=round(now - self._stepped_seconds, 1))
            for node in self.state.nodes.values():
                node.last_heard_seconds = now
            if self.state.world is not None:
                self.state.world.last_progress_seconds = now
        self._stepped_seconds = now

    def _look_at_log(self) -> None:
        self.state.candidate, self.state.candidate_generation = self._log.candidate()
        self.state.previous, self.state.bad = self._log.beside()

    def _after(self, action: object) -> None:
        world = self.state.world
        if isinstance(action, FormGeneration | FormRanks | Adopt) and world is not None:
            self._kv.current(world.id)
        elif isinstance(action, CompleteJob):
            self._kv.complete()

    def _tell(self) -> None:
        # What passes at once is nothing to tell a person.
        settled = self._clock.monotonic() - self._options.heartbeat_seconds
        waits = {topic: reason for topic, reason in self._reasons.items() if self._reasons_since[topic] <= settled}
        for id, link in list(self._links.items()):
            node = self.state.nodes[id]
            wanted = list(messages_for(self.state, node, waits))
            # What is no longer wanted may be wanted again later, and must be said again then.
            node.told &= {key for key, _ in wanted}
            for key, make in wanted:
                if key not in node.told:
                    node.told.add(key)
                    if not self._send(id, link, make()):
                        break

    def _send(self, node: str, link: Link, message: pb.ToNode) -> bool:
        if link.send(message):
            return True
        _log.warning("node dropped: it does not read its messages; it will reconnect", node=node)
        self.detach(node, link)
        return False

    def _heard(self, trouble: Concern, seconds: float | None) -> None:
        note_trouble(self.events, trouble, seconds)

    def _log_reasons(self, reasons: dict[str, str]) -> None:
        for topic, reason in reasons.items():
            if self._reasons.get(topic) != reason:
                _log.info("waiting", topic=topic, reason=reason)
                self._reasons_since[topic] = self._clock.monotonic()
        self._reasons = reasons
