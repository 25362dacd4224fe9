"""A small training of one rank, and the sha256 of its live tensors: equality is never judged through our own capture."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import numpy
import torch


def digest(*things: Any) -> str:
    """sha256 over everything in the state dicts, tensors by their raw bytes."""
    found = hashlib.sha256()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()))
        elif isinstance(value, dict):
            for key in value:
                found.update(repr(key).encode())
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)
        else:
            found.update(repr(value).encode())

    for thing in things:
        walk(thing.state_dict())
    return found.hexdigest()


class Setup:
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 33), torch.nn.BatchNorm1d(33), torch.nn.Dropout(0.2), torch.nn.Linear(33, 3, dtype=torch.float32)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedulers = {
            "lambda": torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.9**n),
            "cycle": torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=100),
        }

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, **self.schedulers}

    def train(self) -> float:
        loss = self.model(torch.randn(16, 8)).square().mean() + random.random() * 0 + float(numpy.random.rand()) * 0
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedulers["cycle"].step()
        return float(loss)

    def digest(self) -> str:
        return digest(*self.parts().values())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
