"""The coordinator's one writer to the commit log: jobs in, results out, one at a time (PROTOCOLS 4.3 and 4.4).

The store being away delays these jobs and nothing else: each is tried again until the log has answered, because until then its
outcome is unknown. An attempt's outcome is what the log says, not what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.commit.assemble import BaseGoneError
from ckptd.commit.bases import Use, Uses, referable
from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, pin
from ckptd.commit.state import Entry
from ckptd.coordinator.confirming import Confirm
from ckptd.coordinator.enact import AbortJob, CheckTailJob, CommitJob, LogJob, PinJob, QuarantineJob
from ckptd.coordinator.state import Outcome
from ckptd.coordinator.world import NOTHING, Target
from ckptd.errors import CkptdError, CorruptError, OfficeLostError, ResourceError, StoreError
from ckptd.model.ids import NO_GENERATION, Attempt, Generation

RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Assembled:
    """A manifest's hash, and the stored bytes that it wrote itself. ``uses``: what it needs of each of its bases."""

    manifest: str
    own_bytes: int = 0
    uses: Mapping[int, Use] = field(default_factory=dict)


# (attempt, world size, the commit that it descends from, encoded parts, the log's commits)
Assemble = Callable[[Attempt, int, int | None, Sequence[bytes], Mapping[int, Entry]], Awaitable[Assembled]]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TailAbsent:
    """We were in office when the store was asked."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What the log says about an attempt."""

    attempt: Attempt
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Commit ``seq`` is not offered any more; or it is, because it is whole as seen from here: ``done`` is False then."""

    seq: int
    done: bool = True


@dataclass(frozen=True, slots=True)
class Pinned:
    """Commit ``seq`` is pinned by ``holder``; not ``done``: it was no live commit any more."""

    seq: int
    holder: str
    done: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """A job could not be done this time and is tried again. Not a result: the job goes on."""

    reason: str


LogResult = TailAbsent | Settled | Quarantined | Pinned | Trouble


def _target(entry: Entry) -> Target:
    return Target(entry.n, entry.attempt.snapshot.step, entry.manifest)


class LogWorker:
    """Runs log jobs in order. ``report`` gets every result; ``run`` raises OfficeLostError when we must step down."""

    def __init__(
        self, log: CommitLog, committer: Committer, assemble: Assemble, confirm: Confirm, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._log = log
        self._committer = committer
        self._assemble = assemble
        self._confirm = confirm
        self._clock = clock
        self._jobs: asyncio.Queue[LogJob] = asyncio.Queue()
        self._uses: Uses | None = None  # of the last commit that is ours
        self._referable: tuple[tuple[int, int | None], tuple[int, ...]] = ((-2, None), ())
        self.report: Callable[[LogResult], None] = lambda _result: None

    def submit(self, job: LogJob) -> None:
        """Queue a job; bounded by the number of open snapshots."""
        self._jobs.put_nowait(job)

    def outcome_of(self, attempt: Attempt) -> Outcome | None:
        """What the log, as we last read it, says about an attempt."""
        state = self._log.state
        if attempt in state.committed:
            return Outcome(state.committed[attempt], "")
        if state.forgets(attempt):
            return Outcome(None, "it was settled long ago, and the log has forgotten how")
        return Outcome(None, "it was given up") if attempt in state.aborted else None

    def beside(self) -> tuple[Target, tuple[Target, ...]]:
        """The live commit before the candidate; and the quarantined ones after it, oldest first."""
        entries = list(self._log.state.commits.values())
        newest = restore_candidate(self._log.state)
        after = -1 if newest is None else newest.n
        previous = next((entry for entry in reversed(entries) if entry.live and entry.n < after), None)
        bad = tuple(_target(entry) for entry in entries if entry.n > after and entry.quarantined_at is not None)
        return (NOTHING if previous is None else _target(previous)), bad

    def referable(self, without: int | None) -> tuple[int, ...]:
        """The commits whose frames new snapshots may refer to; ``without`` is about to be put aside."""
        asked = (self._log.state.tail, without)
        if self._referable[0] != asked:
            self._referable = (asked, referable(self._log.state, self._uses, without))
        return self._referable[1]

    def candidate(self) -> tuple[Target, Generation]:
        """The commit to restore, by the log as we last read it, and the generation that made it."""
        entry = restore_candidate(self._log.state)
        if entry is None:
            return NOTHING, NO_GENERATION
        return _target(entry), entry.attempt.snapshot.generation

    async def run(self) -> None:
        """Until cancelled. Raises OfficeLostError, and CorruptError or LogTruncatedError when the log itself is damaged."""
        while True:
            job = await self._jobs.get()
            self.report(await self._until_done(job))

    async def _until_done(self, job: LogJob) -> LogResult:
        waiting = False
        while True:
            try:
                result = await self._do(job)
                if waiting:
                    _log.info("the store answers again", job=type(job).__name__)
                return result
            except StoreError as error:
                if not waiting:  # once per outage
                    _log.warning("log work waits for the store", job=type(job).__name__, error=str(error))
                waiting = True
                self.report(Trouble(str(error)))
            await self._clock.sleep(RETRY_SECONDS)

    async def _do(self, job: LogJob) -> LogResult:
        match job:
            case CheckTailJob():
                await self._check_tail()
                return TailAbsent()
            case CommitJob():
                return Settled(job.attempt, await self._commit(job))
            case AbortJob(attempt, reason):
                return Settled(attempt, await self._abort(attempt, reason))
            case QuarantineJob(seq, reason):
                return await self._quarantine_if_damaged(seq, reason)
            case PinJob(seq, holder):
                return await self._pin(seq, holder)

    async def check_office(self) -> None:
        """Read on in the log. Raises OfficeLostError when a later EPOCH stands there, and what the store raises."""
        await self._log.refresh()
        if self._log.state.office != self._committer.office:
            raise OfficeLostError(f"another coordinator took office now={self._log.state.office}")

    async def _check_tail(self) -> None:
        while not await self._log.tail_is_absent():
            await self.check_office()  # a PIN perhaps; another's EPOCH ends us

    async def _commit(self, job: CommitJob) -> Outcome:
        known = self.outcome_of(job.attempt)
        if known is not None:
            return known
        live = [entry.n for entry in self._log.state.commits.values() if entry.live and entry.n != job.over]
        parent_seq = max(live, default=None)
        commits = {n: entry for n, entry in self._log.state.commits.items() if n != job.over}
        try:
            made = await self._assemble(job.attempt, job.world_size, parent_seq, job.parts, commits)
        except StoreError:
            raise
        except BaseGoneError as error:
            return await self._abort(job.attempt, str(error))
        except (CorruptError, ResourceError, ValueError) as error:
            _log.error("a snapshot's parts don't fit together", attempt=str(job.attempt), error=str(error))
            return await self._abort(job.attempt, f"its parts don't fit together: {error}")
        if job.over is not None:
            await self._quarantine(job.over, f"worlds that restored it failed; {job.attempt} came about without it")
        try:
            seq = await self._committer.commit(job.attempt, made.manifest, tuple(made.uses), parent_seq)
        except RecordRefusedError as error:
            return await self._abort(job.attempt, f"the log refused it: {error}")
        self._uses = Uses(seq, made.own_bytes, made.uses)
        return Outcome(seq, "")

    async def _abort(self, attempt: Attempt, reason: str) -> Outcome:
        try:
            await self._committer.abort(attempt)
        except RecordRefusedError as error:
            committed = self.outcome_of(attempt)
            if committed is None:
                raise CkptdError(f"the log refuses to abort {attempt}, and does not have it: {error}") from error
            return committed
        return Outcome(None, reason)

    async def _quarantine_if_damaged(self, seq: int, reason: str) -> Quarantined:
        entry = self._log.state.commits.get(seq)
        if entry is None:
            return Quarantined(seq)  # retired, collected and forgotten meanwhile
        found = await self._confirm(entry, reason)
        if found:
            return await self._quarantine(seq, f"{reason}; found here: {found}")
        _log.error("NOT QUARANTINED: a node calls a commit damaged that is whole as seen from here", seq=seq, says=reason)
        return Quarantined(seq, done=False)

    async def _quarantine(self, seq: int, reason: str) -> Quarantined:
        try:
            await self._committer.quarantine(seq, reason)
            _log.error("a commit is quarantined", seq=seq, reason=reason)
        except RecordRefusedError as error:
            _log.warning("it was no live commit any more", seq=seq, error=str(error))
        return Quarantined(seq)

    async def _pin(self, seq: int, holder: str) -> Pinned:
        try:
            await pin(self._log, seq, holder)
        except RecordRefusedError as error:
            _log.warning("it was no live commit any more", seq=seq, error=str(error))
            return Pinned(seq, holder, False)
        return Pinned(seq, holder, True)
