"""Short campaigns of fixed seeds: faults of every kind, and all that was promised holds (`make chaos` is the long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.acts import ACTS, Tally, draw, repeat, run_acts
from chaos.bugs import BUGS
from chaos.campaign import Orders, run
from chaos.records import unsynced
from chaos.scene import rewritten
from chaos.trial import Outcome
from chaos.victims import STRIKES

SEED = 3
SHORT = {
    "way": [
        "kill trainer",
        "kill node",
        "kill coordinator in commit",
        "kill MinIO",
        "stop daemon",
        "S3's replies to writes lost",
    ],
    "disk": ["kill daemon", "disk full: store", "segment flipped"],
}


@pytest.mark.parametrize("act", list(SHORT))
def test_a_few_of_each(tmp_path: Path, act: str) -> None:
    """The stand-in, on MinIO behind proxies and on a small disk."""
    tally = Tally()
    run_acts(SEED, [act], SHORT[act], 1, tmp_path, print, tally)
    assert set(tally.classes()) == set(SHORT[act])


def test_real_trainers(tmp_path: Path) -> None:
    """A trainer of a torch training dies, and no step's loss is another one for it."""
    orders = Orders(SEED, kills=1, victims=["trainer"], minio=False)
    print(orders.repeat())
    run(orders, tmp_path, print)


def test_all_follows_from_the_seed() -> None:
    assert [trial.name for trial in draw("way", 5)] == [trial.name for trial in draw("way", 5)]
    assert [trial.name for trial in draw("way", 5)] != [trial.name for trial in draw("way", 6)]
    assert {trial.name for trial in draw("disk", 5, ["kill trainer"], 2)} == {"kill trainer"}
    assert '--seed 5 --acts disk --only "kill trainer" --times 2\'' in repeat(5, ["disk"], ["kill trainer"], 2)
    orders = Orders(seed=5, kills=14, victims=list(STRIKES), minio=True)
    assert orders.drawn() == orders.drawn() != Orders(6, 14, list(STRIKES), True).drawn()


def test_a_campaign_with_too_little_in_it_is_no_success() -> None:
    tally = Tally()
    assert len(tally.shortcomings()) == 3
    tally.outcomes = [(Outcome(f"fault {number}", 9, 1, 2, 1.0), number < 6) for number in range(23)]
    assert tally.shortcomings() == []
    assert "23 fault classes, 207 SIGKILLs, 54 of them of torch trainers" in list(tally.table())
    del tally.outcomes[0]
    assert tally.shortcomings() == ["198 SIGKILLs, at least 200 are asked for"]


def test_every_bug_has_a_trial_that_meets_it() -> None:
    assert len(BUGS) >= 6
    for bug in BUGS.values():
        assert bug.trial in {trial.name for trial, _ in ACTS[bug.act].trials}


def test_a_missing_fsync_is_named() -> None:
    lines = ["fsync /s/.tmp-1", "publish /s/.tmp-1 /s/one", "publish /s/.tmp-2 /s/two", "fsync /s"]
    assert list(unsynced(lines)) == ["D1: /s/two was made visible before its bytes were on the disk"]


def test_a_key_written_twice_is_named() -> None:
    assert rewritten({"chaos/data/1-1.20.0/a.0-0.seg": {1}, "chaos/LATEST": {1, 2}}) == []
    assert len(rewritten({"chaos/data/1-1.20.0/a.0-0.seg": {1, 2}})) == 1
