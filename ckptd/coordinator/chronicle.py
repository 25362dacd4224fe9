"""What was decided and what came of it, in words: lines of the coordinator's own log, and events for people."""

from __future__ import annotations

import structlog

from ckptd.coordinator import actions as act
from ckptd.coordinator.events import Events
from ckptd.coordinator.state import Outcome
from ckptd.coordinator.world import World
from ckptd.model.ids import Attempt
from ckptd.troubles import Trouble

_log = structlog.get_logger(__name__)


def log_action(action: act.Action, fruitless: int) -> None:
    """A line of the log for what is about to be enacted. ``fruitless``: failed worlds since the last commit."""
    match action:
        case act.WithholdSchedule(reason):
            _log.warning("no snapshots will be taken", reason=reason)
        case act.FailRestore(reason, quarantine):
            _log.error("NO RANK RESTORES", reason=reason, quarantined=quarantine)
        case act.NameRestore(target, loss) if loss:
            _log.error("STEPS ARE LOST", loss=loss, record=target.seq, step=target.step)
        case act.StepBack(over, reason):
            _log.error("stepping back one checkpoint", over=over, reason=reason)
        case act.StopJob(diagnosis):
            _log.error("THE JOB IS STOPPED", diagnosis=diagnosis)
        case act.CountWorld(failure) if failure is not None:
            _log.warning("a world failed without a checkpoint", in_a_row=fruitless + 1, first=failure.what)
        case act.PauseSchedule(reason):
            _log.warning("snapshots pause until every rank has a free slot", reason=reason)
        case act.AskRegroup(nodes, reason, _):
            _log.warning("regroup", nodes=list(nodes), reason=reason)
        case _:
            _log.info("decided", action=type(action).__name__, detail=str(action))


def note_action(events: Events, action: act.Action, world: World | None) -> None:
    """Keep for people what has just been enacted."""
    match action:
        case act.FormGeneration() | act.FormRanks() | act.Adopt() if world is not None:
            names = ", ".join(world.members)
            word = "went on" if isinstance(action, act.Adopt) else "was formed"
            text = f"generation {world.id} {word}: {world.world_size} ranks on {len(world.members)} nodes ({names})"
            events.add("formed", text)
        case act.AskRegroup(_, reason):
            events.add("regroup", reason)
        case act.DeclareDead(_, reason):
            events.add("lost", reason)
        case act.AnnounceSchedule(schedule):
            events.add("schedule", f"a snapshot every {schedule.every} steps from step {schedule.first} on")
        case act.PauseSchedule(reason):
            events.add("paused", f"no snapshots until every rank has a free slot: {reason}")
        case act.Revive(reason):
            events.add("back", reason)
        case act.WithholdSchedule(reason):
            events.add("withheld", f"no snapshots will be taken: {reason}")
        case act.NameRestore(target):
            text = "there is nothing to restore" if target.seq is None else f"step {target.step}, record {target.seq}"
            events.add("restore", text)
        case act.RestoreGo():
            events.add("restored", "every rank has what it was told to restore")
        case act.FailRestore(reason, _):
            events.add("restore failed", reason)
        case act.StepBack(over, reason):
            events.add("step back", f"without record {over}: {reason}")
        case act.StopJob(diagnosis):
            events.add("stopped", diagnosis)
        case act.CompleteJob(reason):
            events.add("complete", reason)
        case act.Dismiss(agents, reason):
            events.add("dismissed", f"{', '.join(node for node, _ in agents)}: {reason}")


def note_settled(events: Events, attempt: Attempt, outcome: Outcome) -> None:
    """Keep for people what became of an attempt."""
    snapshot = attempt.snapshot
    if outcome.seq is not None:
        events.add("committed", f"step {snapshot.step} of generation {snapshot.generation}, record {outcome.seq}")
    else:
        events.add("aborted", f"step {snapshot.step} of generation {snapshot.generation}: {outcome.reason}")


def note_trouble(events: Events, trouble: Trouble, seconds: float | None) -> None:
    """Keep for people that a trouble began, or was over after ``seconds``."""
    if seconds is None:
        events.add("trouble", f"{trouble.topic}: {trouble.what}")
    else:
        events.add("over", f"{trouble.topic}: after {seconds:.0f} s: {trouble.what}")
