"""One rank of a measured world, started by `Stage.ranks`: runs a figure's function and tells what it measured as JSON lines."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist

from benchmarks.peers import Contender, State, empty_like, local_of
from benchmarks.rounds import interleave


def tell(event: str, **values: object) -> None:
    """One line for the figure."""
    print(json.dumps({"event": event, **values}), flush=True)


def compete(state: State, contenders: Sequence[Contender], rounds: int, *, until_durable: bool) -> None:
    """Interleaved rounds, told as "rounds" (seconds), then each one's digest of what it gives back, told as "digest".

    Before each round the state is changed, before each contender's turn its last save has ended on all ranks.
    """

    def turn(contender: Contender, number: int) -> float:
        if contender is contenders[number % len(contenders)]:
            change(state)
        contender.before()
        dist.barrier()
        begun = time.perf_counter()
        contender.start(number)
        if until_durable:
            contender.finish()
        seconds = time.perf_counter() - begun
        contender.finish()
        dist.barrier()
        return seconds

    found = interleave({contender.name: partial(turn, contender) for contender in contenders}, rounds)
    tell("rounds", first=found.first, raw=found.raw)
    tell("digest", who="live", digest=digest(state))
    for contender in contenders:
        given = empty_like(state)
        if contender.load(given):
            tell("digest", who=contender.name, digest=digest(given))
        contender.close()


def change(state: State) -> None:
    """Let it differ from what was saved before, in every element and by little: a step of training does the same."""
    for tensor in state.values():
        local_of(tensor).mul_(1.0 + 2.0**-12)


def digest(state: State) -> str:
    """sha256 of this rank's bytes, through nothing of ours."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(local_of(state[name]).contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def give_back(contender: Contender, state: State) -> None:
    """In a new world: load into ``state``, as a restart would, and tell the digest. Raises RuntimeError for nothing to load."""
    if not contender.load(state):
        raise RuntimeError(f"{contender.name} has nothing to load")
    tell("digest", who=contender.name, digest=digest(state))
    contender.close()


def main() -> None:
    """``<module>:<function> <JSON of its arguments>``."""
    module, _, function = sys.argv[1].partition(":")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
