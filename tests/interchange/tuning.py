"""A trainer that goes on from an imported state dict, and saves again; one of its ranks, for one daemon."""

from __future__ import annotations

import json
import os

import torch

import ckptd_client


def main() -> None:
    model = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0}
    with ckptd_client.connect() as checkpointer:
        done = checkpointer.load(state)
        optimizer.load_state_dict(state["optimizer"])
        told = {"done": done, "epoch": state["epoch"], "lr": optimizer.param_groups[0]["lr"], "sum": float(model.weight.sum())}
        state["epoch"] += 1
        checkpointer.save(state, done + 1).wait(60)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(told))


if __name__ == "__main__":
    main()
