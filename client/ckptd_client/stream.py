"""This job's position in its stream of samples, which the checkpoint keeps (`data` says what a position means)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptd_client import data
from ckptd_client.errors import ConfigError


class Stream:
    """Samples consumed by the whole job."""

    def __init__(self, world_size: int, rank: int) -> None:
        self._world_size, self._rank = world_size, rank
        self._position = 0
        self._taken = 0  # of which the current step's global batch is not counted yet
        self._of: tuple[int, int] | None = None  # (num_samples, seed)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"position": self._position, "stream": self._of}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was."""
        self._position, self._of, self._taken = state["position"], state["stream"], 0

    def complete(self) -> None:
        """The step that took the current global batch is done."""
        self._position += self._taken
        self._taken = 0

    def batches(
        self, num_samples: int, global_batch: int, micro_batch: int | None, seed: int, ranks: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], float]]:
        """This rank's micro-batches of the global batch at the position; ``ranks`` share it (None: all). Raises ConfigError."""
        ranks = range(self._world_size) if ranks is None else ranks
        if self._rank not in ranks:
            raise ConfigError(f"rank {self._rank} asks for samples of other ranks ranks={list(ranks)[:20]}")
        if num_samples < 1:
            raise ConfigError(f"a dataset has at least one sample num_samples={num_samples}")
        if self._of is not None and self._of != (num_samples, seed):
            raise ConfigError(
                f"the position in the data belongs to num_samples={self._of[0]} seed={self._of[1]}, not to"
                f" num_samples={num_samples} seed={seed}"
            )
        shares, share = len(ranks), ranks.index(self._rank)
        data.split(global_batch, shares, share, micro_batch)
        self._of, self._taken = (num_samples, seed), global_batch
        return data.micro_batches(self._position, num_samples, global_batch, shares, share, micro_batch, seed)
