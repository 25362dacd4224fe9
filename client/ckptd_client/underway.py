"""A snapshot that is being taken: what is copied into its slot at once, and what behind the training."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from ckptd_client import devices
from ckptd_client.arena import Arena
from ckptd_client.capture import Plan
from ckptd_client.copying import Copying
from ckptd_client.handle import Handle
from ckptd_client.hidden import Hidden
from ckptd_client.messages.hello import Gen
from ckptd_client.tree import Collected


@dataclass(slots=True)
class UnderWay:
    """A snapshot that is not sealed yet. ``copy``: what runs behind the training; ``stalled_seconds``: blocked so far."""

    handle: Handle
    arena: Arena
    plan: Plan
    slot: int
    layout: int
    generation: Gen
    lengths: list[int]
    stalled_seconds: float
    copy: Copying | None
    places: list[int]
    thread: int
    process: int

    def finish(self, wait: bool, hidden: Hidden) -> tuple[bool, str | None]:
        """(Whether the copy is over, why it is of no use, None if it is complete and of one step); over it is with ``wait``."""
        if self.copy is None:
            return True, None
        try:
            if not self.copy.fence() and not wait:
                return False, None
            written = [self.plan.pieces[self.places[at]].fqn for at in self.copy.finish()]
        except Exception as error:  # whatever it is, it must not end the training
            self.copy.abandon()
            return True, f"copying behind the training failed: {type(error).__name__}: {error}"
        if not written:
            return True, None
        hidden.lost(written)
        names = f"{written[0]} and {len(written) - 1} more" if len(written) > 1 else written[0]
        return True, f"{names} was written outside its optimizer while it was copied; from now on it is copied at once"


def begin(
    handle: Handle,
    arena: Arena,
    plan: Plan,
    slot: int,
    layout: int,
    generation: Gen,
    found: Collected,
    hidden: Hidden | None,
    entered_seconds: float,
) -> UnderWay:
    """Copy into a begun slot what is copied at once; start the copy behind the training of what ``hidden`` names, if given.

    ``entered_seconds``: since when training stands still for it. Raises what the plan raises, when no device writes any more.
    """
    places = hidden.places(plan, found, arena) if hidden is not None else []
    handle.hidden = bool(places)
    outgoing, copy = None, None
    if isinstance(arena.pinned, devices.Pinned):
        outgoing = devices.Outgoing(arena.pinned, plan.place(arena, slot))
    try:
        if hidden is not None and places:
            lengths = plan.copy_into(arena, slot, found, places, outgoing)
            copy = hidden.start(plan, found, arena, slot, outgoing)
        elif outgoing is not None:
            lengths = plan.copy_into(arena, slot, found, (), outgoing)
            outgoing.finish()
        else:
            lengths = plan.copy_into(arena, slot, found)
    except BaseException:
        if outgoing is not None:
            outgoing.abandon()  # before the slot is another snapshot's
        raise
    blocked_seconds = time.monotonic() - entered_seconds
    here = threading.get_ident(), os.getpid()
    return UnderWay(handle, arena, plan, slot, layout, generation, lengths, blocked_seconds, copy, places, *here)
