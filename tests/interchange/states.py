"""States with all kinds of tensors and values in them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import torch

from tests.interchange.saved import ALL_DTYPES, random_tensor


def weights(dtypes: list[str] = ALL_DTYPES) -> dict[str, torch.Tensor]:
    """All types, and all odd shapes."""
    found = {f"layer.{name}": random_tensor(name, 3, 5, seed=7) for name in dtypes}
    found |= {"scalar": random_tensor("float32"), "none": torch.empty(0, 4), "empty": torch.empty(0, dtype=torch.bfloat16)}
    return found | {"turned": random_tensor("float32", 70, 30).t(), "tied": found["layer.float32"]}


def optimizer() -> dict[str, Any]:
    """As torch.optim makes it."""
    entries = {key: random_tensor("float32", 3, 5, seed=seed) for seed, key in enumerate(("exp_avg", "exp_avg_sq"))}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0, "amsgrad": False, "foreach": None, "params": [0, 1]}]
    return {"state": {0: {"step": torch.tensor(3.0), **entries}, 1: {}}, "param_groups": groups}


def state() -> dict[str, Any]:
    """A whole training's."""
    return {
        "model": weights(),
        "optimizer": optimizer(),
        "epoch": 3,
        "big": 1 << 80,
        "minus": -(1 << 63),
        "loss": float("-inf"),
        "name": "naïve \N{SNOWMAN}",
        "raw": bytes(range(256)),
        "nothing": None,
        "nested": [[1, "two"], (3.5, True), {"deep": [torch.arange(4), {"er": 1}]}],
        "pair": (torch.ones(2), "beside"),
        "ordered": OrderedDict(b=1, a=2),
        "counted": Counter("hello"),
        "dtype": torch.bfloat16,
        "void": {},
    }
