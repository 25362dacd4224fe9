"""Three real nodes that come and go. The rest of the scenarios: `make chaos ARGS='--scenarios all'`."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.comings import Visits, check_scale_up, run_scenarios
from chaos.scene import ChaosError

SETTLED = {"event": "attempt settled", "seq": 7}
WAITS = {"event": "waiting", "topic": "scale up", "reason": "after the next commit these are taken in: c"}
REGROUP = {"event": "regroup", "reason": "scale up: c"}


def test_two_at_once_below_min_nodes_then_one_with_the_coordinator(tmp_path: Path) -> None:
    """3 → too few, which wait and say so → 2 → 3 → a node lost together with the coordinator → 2 → 3."""
    visits = Visits(seed=4, names=["too-few", "coordinator-and-node"], minio=False)
    print(visits.repeat())
    run_scenarios(visits, tmp_path, print)


def test_who_ends_a_world_before_its_commit_is_found_out() -> None:
    check_scale_up([SETTLED, WAITS, SETTLED, REGROUP])
    for events in ([SETTLED, WAITS, REGROUP], [WAITS, {**SETTLED, "seq": None}, REGROUP], [WAITS, SETTLED]):
        with pytest.raises(ChaosError):
            check_scale_up(events)
