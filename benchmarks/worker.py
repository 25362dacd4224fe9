"""One rank of a measured world; tells what it measured as JSON lines. Started by `benchmarks.stage`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist

from benchmarks.contenders import BarePut, Ckptd, Contender, Dcp, Memcpy, State, change, digest, empty_like, make_state
from benchmarks.processes import Memory, memory
from ckptd.demo.process import pids_with

_SAMPLE_SECONDS = 0.02


def tell(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["stall", "durable", "memory", "load"])
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--who", choices=["none", "ckptd", "dcp"], default="none")
    parser.add_argument("--coordinator-pid", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    state = make_state(options.bytes, seed=1)
    if options.what == "load":
        load(state)
    elif options.what == "memory":
        hold(state, options)
    else:
        compete(state, options)
    dist.destroy_process_group()


def compete(state: State, options: argparse.Namespace) -> None:
    """Rounds 0 (the first save) and 1 (to warm up, the other slot) aren't in the medians; each round has its own order."""
    durable = options.what == "durable"
    limit: Contender = BarePut(state, options.bucket) if durable else Memcpy(state)
    contenders = [limit, Ckptd(state, options.bucket), Dcp(state, options.bucket, asynchronous=not durable)]
    for number in range(options.rounds + 2):
        change(state)
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.before()
            dist.barrier()
            begun = time.perf_counter()
            contender.start(number)
            if durable:
                contender.finish()
            seconds = time.perf_counter() - begun
            contender.finish()
            dist.barrier()
            tell("round", who=contender.name, round=number, seconds=seconds)
    tell("digest", who="live", digest=digest(state))
    for contender in contenders:
        found = contender.restored()
        if found is not None:
            tell("digest", who=contender.name, digest=found)
        contender.close()


def load(state: State) -> None:
    """What ckptd gives back to a new world."""
    import ckptd_client

    found = empty_like(state)
    with ckptd_client.connect() as ckpt:
        step = ckpt.load(found)
    tell("digest", who="ckptd", digest=digest(found), step=step)


def hold(state: State, options: argparse.Namespace) -> None:
    """Save now and then, and watch what all processes hold: after a save has ended, and while one is on its way."""
    contender: Contender | None = None
    if options.who == "ckptd":
        contender = Ckptd(state, options.bucket)
    elif options.who == "dcp":
        contender = Dcp(state, options.bucket, asynchronous=True)
    for number in range(options.rounds + 2):
        change(state)
        if contender is not None:
            contender.before()
        dist.barrier()
        if contender is not None:
            contender.start(number)
        samples = watch(contender, options.coordinator_pid) if dist.get_rank() == 0 else []
        if contender is not None:
            contender.finish()
        dist.barrier()
        if dist.get_rank() == 0:
            after = memory(pids(options.coordinator_pid))
            peak = max([*samples, after], key=lambda sample: sample.pss_bytes)
            tell("steady", round=number, pss=after.pss_bytes, shared=after.shared_bytes)
            tell("draining", round=number, pss=peak.pss_bytes, shared=peak.shared_bytes, samples=len(samples))
        dist.barrier()
    if contender is not None:
        contender.close()


def pids(coordinator_pid: int) -> list[int]:
    """Everything on the node, and the coordinator."""
    return pids_with("CKPTD_SOCKET", os.environ["CKPTD_SOCKET"]) + ([coordinator_pid] if coordinator_pid else [])


def watch(contender: Contender | None, coordinator_pid: int) -> list[Memory]:
    """Samples from now until the save has ended; what waits for that end is a thread of ours."""
    if contender is None:
        return []
    over = threading.Event()

    def wait() -> None:
        try:
            contender.finish()
        finally:
            over.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    watched = pids(coordinator_pid)
    samples = []
    while not over.wait(_SAMPLE_SECONDS):
        samples.append(memory(watched))
    waiting.join()
    return samples


if __name__ == "__main__":
    main()
