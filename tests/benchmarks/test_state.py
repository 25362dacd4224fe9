"""What is cut out of the trained state is really there, each byte once, whoever holds which part."""

from __future__ import annotations

import pytest
import torch

from benchmarks import state
from benchmarks.state import Checkpoint, few, small


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints of the numbers from 0 up, in the order in which they are used."""
    at = 0

    def tensor(*shape: int) -> torch.Tensor:
        nonlocal at
        at += torch.Size(shape).numel()
        return torch.arange(at - torch.Size(shape).numel(), at, dtype=torch.float32).view(shape)

    def checkpoint(step: int) -> Checkpoint:
        named = {name: [tensor(*shape) for _ in range(3)] for name, shape in (("a", (3, 1024)), ("b", (1000,)))}
        return Checkpoint(step, *({name: kinds[i] for name, kinds in named.items()} for i in range(3)))

    made = (checkpoint(1), checkpoint(2))
    monkeypatch.setattr(state, "trained", lambda: made)


def test_pieces_are_what_was_trained_in_its_order() -> None:
    whole = torch.cat([part.view(-1) for part in few(16 * 1024 * 4, count=4).values()])
    assert torch.equal(whole, torch.arange(16 * 1024.0))


def test_ranks_have_the_rows_of_one_whole() -> None:
    whole, parts = few(16 * 1024 * 4, count=2), [few(16 * 1024 * 4, count=2, rank=rank, world=4) for rank in range(4)]
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def test_small_tensors_have_storages_of_their_own() -> None:
    parts = small(count=100, total_bytes=100 * 40)
    assert torch.equal(torch.cat(list(parts.values())), torch.arange(1000.0))
    assert all(part.untyped_storage().nbytes() == 40 for part in parts.values())


def test_nothing_is_used_twice() -> None:
    with pytest.raises(ValueError, match="trained state"):
        few(64 * 1024 * 4)
