"""Which steps are to be saved: the coordinator's schedule, followed by this rank."""

from __future__ import annotations

from ckptd_client.errors import DaemonUnavailableError
from ckptd_client.member import Member
from ckptd_client.messages.saving import Missed
from ckptd_client.staging import Stager

_LOOK_BACK = 16  # scheduled steps; older ones are long settled


class Follower:
    """Used by the training thread."""

    def __init__(self, member: Member, stager: Stager) -> None:
        self._member, self._stager = member, stager
        self.completed = 0  # furthest completed step
        self.answered = 0  # every scheduled step up to here was sealed or reported as missed
        self.due_step = 0  # the last one that was scheduled

    def due(self, n: int) -> bool:
        """Note step ``n`` in the arena, report scheduled steps that went by unanswered, and say whether ``n`` is scheduled."""
        arena = self._stager.arena
        if arena is None:
            return False
        arena.step = max(arena.step, n)
        schedule = arena.read_schedule()
        if schedule is None or schedule.generation != self._member.generation or schedule.every <= 0:
            return False
        passed = range(schedule.first, n, schedule.every)
        for step in passed[-_LOOK_BACK:]:
            if step > self.answered:
                self.miss(step, "this rank was past the step when it could know")
        due = schedule.includes(n) and n > self.answered
        self.answered = max(self.answered, n)
        if due:
            self.due_step = n
        return due

    def miss(self, step: int, reason: str) -> None:
        """Report that this rank takes no part in the snapshot of ``step``."""
        try:
            self._member.session.send(Missed(step, reason[:500]))
        except DaemonUnavailableError:
            pass  # its daemon is gone: the snapshot dies without us
