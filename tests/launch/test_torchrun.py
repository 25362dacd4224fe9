"""Stock torchrun with our rendezvous: two agents, real gloo workers, a fake daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd_client.messages.agents import Join, Leave, World
from tests.launch.fake import Fake
from tests.launch.processes import Launched, launched, until


@contextmanager
def agent(fake: Fake, node: int, directory: Path) -> Iterator[Launched]:
    path = directory / f"s{node}"
    fake.listen(node, path)
    arguments = ["--rdzv-backend=ckptd", "--rdzv-id=job", "--max-restarts=1000000", "--nnodes=1:2", "--local-addr=127.0.0.1"]
    script = ["tests/launch/worker.py", str(directory)]
    with launched(["-m", "torch.distributed.run", *arguments, *script], CKPTD_SOCKET=str(path)) as torchrun:
        yield torchrun


def test_two_agents_form_reform_and_end(tmp_path: Path) -> None:
    """One story, since each start of torch takes seconds: form, regroup, end while the other node still works, end late."""
    fake = Fake(want=2)
    with agent(fake, 0, tmp_path) as first, agent(fake, 1, tmp_path) as second:
        assert first.line(r"rank=(\d) world=(\d)").groups() == ("0", "2")
        assert second.line(r"rank=(\d) world=(\d)").groups() == ("1", "2")
        worlds = fake.said(World)
        assert {world.world_key for world in worlds} == {worlds[0].world_key}

        fake.drop()  # a daemon's restart restarts no worker: the next lines come from the generation after the Regroup
        fake.wait(lambda: len(fake.connections) == 2 and len(fake.said(World)) == 4)
        fake.regroup()
        assert first.line(r"rank=(\d) world=(\d)").groups() == ("0", "2")
        line = second.line(r"rank=(\d) world=(\d) pid=(\d+)")
        assert line.groups()[:2] == ("1", "2")
        assert {world.generation for world in fake.said(World)} == {(1, 1), (1, 2)}

        (tmp_path / "end0").touch()  # the first node's worker is done: its agent waits in the exit barrier
        fake.wait(lambda: any(key == "torchelastic/agent/terminal_state/num_members" for _, key in fake.values))
        fake.complete()
        assert first.wait() == 0
        os.kill(int(line[3]), signal.SIGKILL)  # the second one joins again, too late: nothing is left to do
        assert second.wait() == 0
        until(lambda: not first.left() + second.left(), "nothing is left")
        assert [leave.failed for leave in fake.said(Leave)] == [False, False]
    fake.close()


def test_a_stopped_job_ends_running_workers_and_says_why(tmp_path: Path) -> None:
    fake = Fake(want=1)
    with agent(fake, 0, tmp_path) as torchrun:
        os.kill(int(torchrun.line(r"rank=0 world=1 pid=(\d+)")[1]), signal.SIGKILL)
        torchrun.line(r"rank=0 world=1")
        first, second = fake.said(Join)
        assert first.failure == ""
        assert second.failure.startswith("rank 0: exit code -9 (Signal 9 (SIGKILL) received by PID")
        fake.stop("the job is stopped: it can't go on")
        torchrun.line("RendezvousClosedError: the job is stopped: it can't go on")
        assert torchrun.wait() == 1
        until(lambda: not torchrun.left(), "nothing is left")
        assert fake.said(Leave)[0].failed
    fake.close()
