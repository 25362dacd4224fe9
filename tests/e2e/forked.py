"""The ranks of a world on one machine, forked from one that has torch loaded: loading takes longer than the training.

    forked.py ENVIRONMENTS SCRIPT ARGUMENT…

ENVIRONMENTS is a JSON list, an object for each rank. Ends with 0 when all ranks do, else with the first other code.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # noqa: F401

from ckptd_client.place import die_with_agent


def main() -> None:
    ranks = []
    for environment in json.loads(sys.argv[1]):
        pid = os.fork()
        if pid == 0:
            die_with_agent()
            os.environ.update(environment)
            sys.argv = sys.argv[2:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.stdout.flush()
            os._exit(0)  # an error has left by its exception
        ranks.append(pid)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in ranks]
    sys.exit(next((abs(code) for code in codes if code), 0))


if __name__ == "__main__":
    main()
