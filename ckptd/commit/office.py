"""Taking office and using it: who may commit, and what an acknowledgement means (PROTOCOLS 4.3 and 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ckptd.commit.fold import State, restore_candidate
from ckptd.commit.log import CommitLog
from ckptd.errors import CkptdError, OfficeLostError
from ckptd.model.ids import Attempt, Snapshot
from ckptd.model.records import Abort, Body, Commit, Epoch, Forget, Office, Pin, Quarantine, Retire, Unpin, clean_reason

NEWEST: Final = -1
"""As a commit's parent: whatever is the newest live commit at its place."""


async def take_office(log: CommitLog, tries: int = 3) -> Office:
    """Append EPOCH(current + 1); the office that is ours then.

    Every other candidate's EPOCH that comes first counts as a lost try. After ``tries`` of them raises OfficeLostError:
    candidates must not depose each other for ever, so look at the leader hint before starting over (PROTOCOLS 4.10). Raises
    what CommitLog.append raises; after UnavailableError with an unknown outcome we may hold an office that nobody uses, which
    harms nobody.
    """
    seen: set[int] = set()

    def decide(state: State) -> Body | None:
        seen.add(state.epoch)
        return Epoch(state.epoch + 1) if len(seen) <= tries else None

    await log.refresh()  # a loss is what happens from now on, not what an old view of the log didn't know
    if await log.append(decide) is None:
        raise OfficeLostError(f"other candidates took office first tries={tries} now={log.state.office}")
    office = log.state.office
    assert office is not None
    return office


class NewestCommitError(CkptdError):
    """The newest live commit can't be retired; nothing was written."""


class Committer:
    """Writes to the log in one office. Methods return the number of the record that did it, once our own fold has it (I4).

    All may be called again after any error: what turns out to be done already is returned, not done twice. They raise
    OfficeLostError once a later EPOCH stands in the log (step down), RecordRefusedError when the log as it stands rules it
    out, and UnavailableError, whose message says if the outcome is unknown.
    """

    def __init__(self, log: CommitLog, office: Office) -> None:
        self._log = log
        self.office = office

    async def commit(self, attempt: Attempt, manifest: str, bases: Sequence[int] = (), parent: int | None = NEWEST) -> int:
        """Make ``attempt`` a checkpoint; everything that ``manifest`` (a hash) refers to must be durable already (I2).

        ``bases``: log numbers of the commits whose frames it refers to. ``parent``: the commit that the manifest names as its
        parent; refused unless that is the newest live one.
        """

        def decide(state: State) -> Body | None:
            entry = state.commits.get(state.committed.get(attempt, -1))
            if entry is not None and entry.manifest == manifest:
                return None
            newest = restore_candidate(state)
            chosen = (newest.n if newest else None) if parent == NEWEST else parent
            return Commit(attempt, manifest, chosen, tuple(sorted(set(bases))))

        await self._log.append(decide, self.office)
        return self._log.state.committed[attempt]

    async def abort(self, attempt: Attempt) -> int:
        """Give ``attempt`` up for good; its objects may be deleted."""
        await self._log.append(lambda state: None if attempt in state.aborted else Abort(attempt), self.office)
        return self._log.state.aborted[attempt]

    async def retire(self, n: int) -> int:
        """Offer commit ``n`` no more; its objects may be deleted once no pin and no live commit needs them.

        Raises NewestCommitError for the newest live one: a restore would take it, and the next commit descends from it.
        """

        def decide(state: State) -> Body | None:
            newest = restore_candidate(state)
            if newest is not None and newest.n == n:
                raise NewestCommitError(f"commit {n} is the newest: a restore would take it, so it can't be retired")
            return None if _retired_at(state, n) is not None else Retire(n)

        await self._log.append(decide, self.office)
        at = _retired_at(self._log.state, n)
        assert at is not None
        return at

    async def quarantine(self, n: int, reason: str) -> int:
        """Never offer commit ``n`` again. ``reason`` is for people; it is made printable and cut to fit."""
        body = Quarantine(n, clean_reason(reason))

        def ended(state: State) -> int | None:
            return state.commits[n].quarantined_at if n in state.commits else None

        await self._log.append(lambda state: body if ended(state) is None else None, self.office)
        at = ended(self._log.state)
        assert at is not None
        return at

    async def forget(self, before: Snapshot) -> None:
        """Let the folded state forget what is over of the snapshots before ``before``: no more of them can be committed."""

        def decide(state: State) -> Body | None:
            done = state.forgotten is not None and state.forgotten.before >= before
            return None if done else Forget(before)

        await self._log.append(decide, self.office)


def _retired_at(state: State, n: int) -> int | None:
    return state.commits[n].retired_at if n in state.commits else None


async def pin(log: CommitLog, n: int, who: str) -> None:
    """Keep commit ``n`` readable until ``who`` unpins it (I7); needs no office. Each reader needs a name of its own.

    Raises RecordRefusedError if ``n`` is no live commit (any more) and isn't pinned by ``who`` already.
    """
    await log.append(lambda state: None if who in state.pins.get(n, ()) else Pin(n, who))


async def unpin(log: CommitLog, n: int, who: str) -> None:
    """End the pin of ``who`` on commit ``n``; nothing happens if there is none."""
    await log.append(lambda state: Unpin(n, who) if who in state.pins.get(n, ()) else None)
