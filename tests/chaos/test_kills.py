"""Short campaigns of fixed seeds: every kind of victim dies by SIGKILL at least once, and all that was promised holds."""

from __future__ import annotations

from pathlib import Path

from chaos.campaign import Orders, run
from chaos.victims import STRIKES


def test_every_victim_once(tmp_path: Path) -> None:
    """Trainer, daemon, agent, node, coordinator and MinIO, one after the other, in one job."""
    orders = Orders(seed=3, kills=len(STRIKES), victims=list(STRIKES), minio=True)
    assert set(orders.drawn()) == set(STRIKES)
    print(orders.repeat())
    run(orders, tmp_path, print)


def test_a_new_coordinator_finds_a_new_daemon(tmp_path: Path) -> None:
    """On a directory: first a daemon dies, then the coordinator. The next one adopts the running world and restarts nobody."""
    orders = Orders(seed=11, kills=2, victims=["daemon", "coordinator"], minio=False)
    assert orders.drawn() == ["daemon", "coordinator"]
    print(orders.repeat())
    run(orders, tmp_path, print)


def test_orders_follow_from_the_seed() -> None:
    orders = Orders(seed=5, kills=14, victims=list(STRIKES), minio=True)
    assert orders.drawn() == orders.drawn() != Orders(6, 14, list(STRIKES), True).drawn()
    assert all(set(orders.drawn()[start : start + 6]) == set(STRIKES) for start in (0, 6))
    assert "--seed 5 --kills 14" in orders.repeat()
