"""Which commits' frames the next snapshots may refer to instead of writing them again: pure (decision 0013).

Only live commits may be bases, and a commit that is a base of a live one can't go. So every reference keeps a whole commit's
data in the store, however little of it is still needed. These bounds make that worth it:

- with all that it refers to, and all that those refer to, a commit keeps at most MOST_KEPT others alive;
- a base of whose bytes less than LEAST_SHARE are still needed is left behind: those frames are written anew, once;
- what lies unused in all bases together is no more than the checkpoint's own size, so that it costs at most two of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ckptd.commit.state import Entry, State

MOST_KEPT: Final = 4
LEAST_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Use:
    """Of ``size_bytes`` stored bytes that a commit wrote itself, ``used_bytes`` are in use by the newest checkpoint."""

    used_bytes: int
    size_bytes: int

    @property
    def unused_bytes(self) -> int:
        """What nothing but this reference keeps."""
        return max(0, self.size_bytes - self.used_bytes)


_UNKNOWN: Final = Use(0, 0)


@dataclass(frozen=True, slots=True)
class Uses:
    """What commit ``by`` has in use of each of its bases, and ``own_bytes`` that it wrote."""

    by: int
    own_bytes: int
    of: Mapping[int, Use]


def referable(state: State, uses: Uses | None, without: int | None = None) -> tuple[int, ...]:
    """Log numbers, ascending, of the commits whose frames the next snapshots may refer to.

    They are the newest live commit and bases of it. While its ``uses`` aren't known, because another coordinator committed it,
    its bases are taken to be used whole. ``without``: a commit that is about to be put aside.
    """
    newest = next((entry for entry in reversed(tuple(state.commits.values())) if entry.live and entry.n != without), None)
    if newest is None:
        return ()
    known: dict[int, Use] = {}
    if uses is not None and uses.by == newest.n:
        known = {**uses.of, newest.n: Use(uses.own_bytes, uses.own_bytes)}
    whole_bytes = sum(use.used_bytes for use in known.values())
    candidates = [newest, *(state.commits[n] for n in newest.bases if n != without and state.is_live(n))]
    chosen: list[Entry] = []
    unused_bytes = 0
    for entry in sorted(candidates, key=lambda entry: (-known.get(entry.n, _UNKNOWN).used_bytes, entry.n)):
        use = known.get(entry.n, _UNKNOWN)
        worth = use.used_bytes >= LEAST_SHARE * use.size_bytes and unused_bytes + use.unused_bytes <= whole_bytes
        if worth and _kept([*chosen, entry]) <= MOST_KEPT:
            chosen.append(entry)
            unused_bytes += use.unused_bytes
    return tuple(sorted(entry.n for entry in chosen))


def _kept(bases: list[Entry]) -> int:
    """How many commits a checkpoint with these bases keeps alive."""
    return len({n for entry in bases for n in (entry.n, *entry.bases)})
