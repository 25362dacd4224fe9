"""Loading what the generation was told to restore, on all ranks or on none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from ckptd_client import rng
from ckptd_client.errors import CkptdError, DaemonUnavailableError, RestoreError
from ckptd_client.member import Member
from ckptd_client.messages.restoring import RestoreInfo
from ckptd_client.receive import receive
from ckptd_client.restore import Targets
from ckptd_client.session import CONNECT_SECONDS, Session
from ckptd_client.typed import decode

_log = logging.getLogger("ckptd")
PROGRESS: Final = "ckptd.progress"
STATE: Final = "ckptd.state"


def recover(
    session: Session, member: Member, rank: int, world_size: int, want: Callable[[Targets], object], raw: bool
) -> tuple[RestoreInfo, Any] | None:
    """Load the job's checkpoint into what ``want`` names, and wait until every rank has its part.

    ``raw``: made by save(), not by step(). Returns (what was restored, its progress), or None when there is nothing to restore.
    Raises MissingStateError before anything is changed, RestoreError.
    """
    try:
        if not session.connected and session.ever_connected:
            session.connect(CONNECT_SECONDS)  # it was there just now: starting at 0 would lose work in silence
        if not session.connected:
            _log.warning("ckptd: NOT CONNECTED to a daemon: starting at step 0, whatever checkpoints the job may have")
            return None
        info = member.ask()
    except DaemonUnavailableError as error:
        raise RestoreError(f"can't learn what to restore: {error}") from error
    except CkptdError as error:
        member.report(f"{type(error).__name__}: {error}")
        raise
    progress = None
    try:
        if info.loss:
            _log.error("ckptd: WORK IS LOST: %s", info.loss)
        targets = Targets(info, rank, world_size)
        if info.seq >= 0:
            progress = _check_progress(targets, raw)
            want(targets)
            receive(session, targets.wants, targets.memory)
            for finish in targets.finish:
                finish()
    except BaseException as error:
        member.report(f"{type(error).__name__}: {error}")
        if isinstance(error, DaemonUnavailableError):
            raise RestoreError(f"the restore broke off: {error}") from error
        raise
    member.report("")
    if progress is None:
        return None
    member.base_seq = info.seq + 1
    return info, progress


def restore_rng(info: RestoreInfo, seed: int, world_size: int, rank: int) -> str:
    """Set the random generators: "exact" in a world of the same size, else "derived"."""
    stored = info.rank_objects.get(rng.FQN)
    if info.world_size == world_size and stored is not None and rng.restore(decode(stored)):
        return "exact"
    rng.derive(seed, info.step, rank)
    return "derived"


def _check_progress(targets: Targets, raw: bool) -> Any:
    progress = targets.tree(PROGRESS)
    if progress["step"] != targets.info.step:
        raise RestoreError(f"the checkpoint says step={progress['step']}, the log says step={targets.info.step}")
    if raw != (STATE in targets.info.objects):
        made, use = ("step", "restore") if raw else ("save", "load")
        raise RestoreError(f"this checkpoint was made by {made}(); load it with {use}() step={targets.info.step}")
    return progress
