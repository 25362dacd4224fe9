from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.data import index_at, micro_batches, split
from ckptd_client.errors import ConfigError
from ckptd_client.stream import Stream


@given(st.integers(1, 300), st.integers(), st.integers(0, 5))
def test_each_data_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    start = epoch * num_samples
    assert sorted(index_at(start + i, num_samples, seed) for i in range(num_samples)) == list(range(num_samples))


def test_seeds_and_epochs_differ_and_a_seed_is_the_same_forever() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [index_at(epoch * 1000 + i, 1000, seed) for i in range(1000)]

    assert len({tuple(order(s, e)) for s in range(5) for e in range(5)}) == 25
    assert [index_at(i, 10**12, 0) for i in range(3)] == [index_at(i, 10**12, 0) for i in range(3)]
    # a permutation without pattern: about 1 fixed point, about as many rises as falls
    rises = sum(a < b for a, b in zip(order(3, 0), order(3, 0)[1:], strict=False))
    assert 440 < rises < 560 and sum(i == v for i, v in enumerate(order(3, 0))) < 8
    assert order(0, 0)[:6] == [index_at(i, 1000, 0) for i in range(6)]


@given(st.integers(1, 200), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 20)))
def test_a_global_batch_is_split_exactly(global_batch: int, world: int, micro: int | None) -> None:
    try:
        shares = [split(global_batch, world, rank, micro) for rank in range(world)]
    except ConfigError:
        assert global_batch < world or (
            micro is not None and math.ceil(math.ceil(global_batch / world) / micro) > global_batch // world
        )
        return
    assert [i for ranges in shares for span in ranges for i in span] == list(range(global_batch))
    assert len({len(ranges) for ranges in shares}) == 1
    sizes = [len(span) for ranges in shares for span in ranges]
    assert min(sizes) >= 1 and (micro is None or max(sizes) <= micro)
    per_rank = [sum(map(len, ranges)) for ranges in shares]
    assert max(per_rank) - min(per_rank) <= 1


@given(st.integers(3, 40), st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(5, 60), st.integers(0, 9))
def test_no_sample_is_seen_twice_or_skipped_across_worlds(batch: int, worlds: list[int], num_samples: int, seed: int) -> None:
    batch = max(batch, max(worlds))
    seen: list[int] = []
    for at, world in enumerate(worlds):
        for rank in range(world):
            for indices, _ in micro_batches(at * batch, num_samples, batch, world, rank, None, seed):
                seen += indices
    assert seen == [index_at(p, num_samples, seed) for p in range(len(worlds) * batch)]


@given(st.integers(6, 50), st.integers(1, 6), st.integers(1, 5))
def test_the_scale_makes_the_gradient_that_of_the_global_mean(batch: int, world: int, micro: int) -> None:
    def loss(index: int) -> float:
        return float(index * index + 1)

    try:
        ranks = [list(micro_batches(0, 97, batch, world, rank, micro, 1)) for rank in range(world)]
    except ConfigError:
        return
    summed = [sum(scale * sum(map(loss, indices)) / len(indices) for indices, scale in parts) for parts in ranks]
    whole = [loss(index_at(p, 97, 1)) for p in range(batch)]
    assert sum(summed) / world == pytest.approx(sum(whole) / batch)


def test_ranks_that_work_on_the_same_samples_get_the_same_ones() -> None:
    """Two by two: "dp" along rows, "tp" within one."""

    def seen(rank: int) -> list[int]:
        stream = Stream(4, rank)
        stream.restore({"position": 5, "stream": None})
        column = (rank % 2, rank % 2 + 2)  # of mesh["dp"]
        return [i for indices, _ in stream.batches(97, 6, None, 1, column) for i in indices]

    assert seen(0) == seen(1) == [index_at(p, 97, 1) for p in (5, 6, 7)]
    assert seen(2) == seen(3) == [index_at(p, 97, 1) for p in (8, 9, 10)]
    with pytest.raises(ConfigError, match="samples of other ranks"):
        Stream(4, 1).batches(97, 6, None, 1, (0, 2))
