"""A gloo world that runs flows one after the other: `python -m tests.dcp.world SIZE PORT DIRECTORY`.

The ranks are forked from one process that has torch loaded. Each flow's results go to DIRECTORY/NAME.RANK.json: where the
backends differ, or how it failed. A flow that fails on one rank only would leave the others in a collective, so what failed is
written before anything else, and the world ends.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.dcp.backends import Backend, differences, plain
from tests.dcp.only_ours import OURS, OURS_OF_SIX
from tests.dcp.together import FLOWS

FIRST = 10**12
EACH = 1000
COMPARED: dict[int, list[Callable[[Backend], Any]]] = {4: FLOWS, 6: []}
CHECKED: dict[int, list[Callable[[Backend, Backend], list[str]]]] = {4: OURS, 6: OURS_OF_SIX}


def names(size: int) -> list[str]:
    """What a world of that size runs, in order."""
    return [work.__name__ for work in (*COMPARED[size], *CHECKED[size])]


def main(rank: int, size: int, port: int, directory: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("cpu:gloo", timeout=datetime.timedelta(seconds=60))
    files = directory / "files"
    first = FIRST * size
    for flow in COMPARED[size]:
        first += EACH

        def compared(flow: Any = flow, first: int = first) -> list[str]:
            ours, theirs = (plain(flow(Backend(ours, files, first))) for ours in (True, False))
            return list(differences(ours, theirs))

        _report(directory, flow.__name__, rank, compared)
    for check in CHECKED[size]:
        first += EACH

        def checked(check: Any = check, first: int = first) -> list[str]:
            found: list[str] = check(Backend(True, files, first), Backend(False, files, first))
            return found

        _report(directory, check.__name__, rank, checked)
    dist.destroy_process_group()


def _report(directory: Path, name: str, rank: int, work: Any) -> None:
    try:
        found = work()
    except BaseException:
        (directory / f"{name}.{rank}.json").write_text(json.dumps([traceback.format_exc()]))
        raise
    (directory / f"{name}.{rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    size, port, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=main, args=(rank, size, port, directory)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))
