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


def test_orders_follow_from_the_seed() -> None:
    orders = Orders(seed=5, kills=14, victims=list(STRIKES), minio=True)
    assert orders.drawn() == orders.drawn() != Orders(6, 14, list(STRIKES), True).drawn()
    assert all(set(orders.drawn()[start : start + 6]) == set(STRIKES) for start in (0, 6))
    assert "--seed 5 --kills 14" in orders.repeat()
