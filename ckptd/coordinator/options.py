"""Settings of a coordinator: each says unit, default, what it trades, and the danger of the extremes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from ckptd.commit.retention import Retention
from ckptd.errors import ConfigError

_MAY_BE_ZERO: Final = frozenset(
    {"debounce_seconds", "join_seconds", "drain_seconds", "linger_seconds", "backoff_seconds"}
    | {"keep_last", "keep_every", "grace_seconds"}
)


@dataclass(frozen=True, slots=True)
class CoordinatorOptions:
    """All waits of the coordinator, in seconds, its schedule, in steps, its patience. Raises ConfigError for impossible values.

    heartbeat_seconds: how often daemons report. Smaller: quicker progress on screen; more messages.
    lease_seconds: silence after which a node may be called dead (never for silence alone: PROTOCOLS 5). Too small: a pause of a
        daemon pauses snapshots; too large: a lost node is noticed later. At least two heartbeats.
    debounce_seconds: a node that comes while training runs is taken in after a commit and this long without others.
        Too small: several returning nodes cost several restarts.
    join_seconds: the first formation waits this long for max_nodes before it does with min_nodes.
    every_steps: a snapshot every so many steps. Smaller: less work lost; more copying and uploading.
    restore_seconds: from the first rank's wish to restore to the last one's report. Too small: a big restore fails for ever.
    drain_seconds: how long a broken generation's complete snapshots may still be uploaded before the next world is told what to
        restore. Too small: work is redone that was nearly saved; too large: a dying link holds up the restart.
    fruitless_generations: after so many worlds in a row that failed by their workers without a commit, the commit before the
        last one is tried; after as many again the job stops. Too small: a passing trouble stops it; too large: a broken script
        burns on.
    backoff_seconds: the longest wait between two such worlds; the first waits are 0, 0, 1, 2, 4 s.
    keep_last: so many newest checkpoints are kept, 0: all. Fewer: less storage; nothing older to go back to when the newest
        turn out to be bad; with 1 there is never anything to step back to.
    keep_every: besides, the first checkpoint of every so many steps is kept for ever, 0: none.
    grace_seconds: from a checkpoint's retirement, or an attempt's end, to its deletion. Smaller: less storage, for what was
        retired in the last so many seconds is still there; whoever reads without a pin has less time.
    linger_seconds: how long a coordinator that ends with its job still answers late nodes.
    queue_messages: messages waiting for one node before its stream is dropped (it reconnects and learns all again).
    """

    heartbeat_seconds: float = 1.0
    lease_seconds: float = 5.0
    debounce_seconds: float = 3.0
    join_seconds: float = 30.0
    every_steps: int = 100
    restore_seconds: float = 600.0
    drain_seconds: float = 30.0
    fruitless_generations: int = 5
    backoff_seconds: float = 30.0
    keep_last: int = 5
    keep_every: int = 0
    grace_seconds: float = 60.0
    linger_seconds: float = 2.0
    queue_messages: int = 1000

    @property
    def retention(self) -> Retention:
        """What is kept."""
        return Retention(self.keep_last, self.keep_every)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1e-6
            if not least <= value < 10**9:
                raise ConfigError(
                    f"{field.name} must be {'0 or more' if not least else 'above 0'} and below 10^9; got {value!r}"
                )
        _ = self.retention  # refuses what can't be
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ConfigError(
                "lease_seconds must be at least two heartbeats, or one late message looks like silence"
                f" lease_seconds={self.lease_seconds} heartbeat_seconds={self.heartbeat_seconds}"
            )
