"""A rank of the gloo world that runs all flows one after the other: `python -m tests.dcp.world RANK PORT DIRECTORY`.

Each flow's results go to DIRECTORY/NAME.RANK.json: where the backends differ, or how it failed. A flow that fails on one rank
only would leave the others in a collective, so that what failed is written before anything else, and the world ends.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.dcp.backends import Backend, differences, plain
from tests.dcp.only_ours import OURS
from tests.dcp.together import FLOWS, SIZE

FIRST = 10**12
EACH = 1000


def main(rank: int, port: int, directory: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("cpu:gloo", timeout=datetime.timedelta(seconds=60))
    files = directory / "files"
    for at, flow in enumerate(FLOWS):
        first = FIRST + EACH * at

        def compared(flow: Any = flow, first: int = first) -> list[str]:
            ours, theirs = (plain(flow(Backend(ours, files, first))) for ours in (True, False))
            return list(differences(ours, theirs))

        _report(directory, flow.__name__, rank, compared)
    for at, check in enumerate(OURS):
        first = FIRST + EACH * (len(FLOWS) + at)

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
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
