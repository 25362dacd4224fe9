"""One global, seeded stream of samples, and this rank's share of it. Pure functions; nothing to save but a position.

Position ``p`` counts samples consumed by the whole job. It means dataset index ``permutation(epoch = p // num_samples)[p %
num_samples]``, whatever the world's size: so each sample is seen exactly once per data epoch, across any change of the world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from ckptd_client.errors import ConfigError

_ROUNDS = 6
_MASK = (1 << 64) - 1


def index_at(position: int, num_samples: int, seed: int) -> int:
    """Dataset index of stream position ``position``; O(1), no state."""
    epoch, at = divmod(position, num_samples)
    half = max(1, ((num_samples - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    while True:  # cycle walking: the network permutes 4**half ≥ num_samples values; stay inside (under 4 rounds on average)
        at = _feistel(at, half, keys)
        if at < num_samples:
            return at


@lru_cache(maxsize=4)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"ckptd data {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        # the finalizer of splitmix64 (Steele, Lea, Flood 2014) as the round function
        mixed = (right + key) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
    return left << half | right


def parts(count: int, pieces: int) -> list[int]:
    """``count`` in ``pieces`` near-equal parts, the bigger ones first."""
    return [count // pieces + (i < count % pieces) for i in range(pieces)]


def split(global_batch: int, world_size: int, rank: int, micro_batch: int | None) -> list[range]:
    """This rank's micro-batches of one global batch, as ranges of offsets in it.

    All ranks get the same number of them (FSDP's collectives need that), each of at most ``micro_batch`` samples (None: one
    micro-batch) and at least one. Raises ConfigError when that can't be.
    """
    if global_batch < world_size:
        raise ConfigError(f"every rank needs a sample of each global batch global_batch={global_batch} world_size={world_size}")
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"a micro-batch has at least one sample micro_batch={micro_batch}")
    shares = parts(global_batch, world_size)
    count = 1 if micro_batch is None else -(-shares[0] // micro_batch)
    if shares[-1] < count:
        raise ConfigError(
            f"some rank would have an empty micro-batch; choose a global batch that the world divides, or a larger micro_batch"
            f" global_batch={global_batch} world_size={world_size} micro_batch={micro_batch}"
        )
    at = sum(shares[:rank])
    ranges = []
    for size in parts(shares[rank], count):
        ranges.append(range(at, at + size))
        at += size
    return ranges


def micro_batches(
    position: int, num_samples: int, global_batch: int, world_size: int, rank: int, micro_batch: int | None, seed: int
) -> Iterator[tuple[list[int], float]]:
    """(dataset indices, loss scale) of this rank's micro-batches of the global batch at ``position``.

    With loss = scale × mean over the micro-batch, summed over micro-batches, and gradients AVERAGED over ranks, the gradient is
    that of the mean over the global batch: a sample weighs world_size / global_batch here, and 1 / world_size in the average.
    """
    for span in split(global_batch, world_size, rank, micro_batch):
        indices = [index_at(position + offset, num_samples, seed) for offset in span]
        yield indices, world_size * len(indices) / global_batch
