"""Saved by one world, loaded by another: real daemons, coordinator, gloo groups and files.

Equality is judged by digests that the trainer takes of its live full tensors, never through our capture.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.harness import Job, World, by_kind, losses


def test_one_rank_to_a_directory_and_back(tmp_path: Path) -> None:
    with Job(tmp_path, every=4) as job:
        first = job.world(1, ["--mode", "plain", "--until", "8", "--durable"]).wait()
        assert [entry.step for entry in job.commits()] == [4, 8]
        again = job.world(1, ["--mode", "plain", "--until", "8"]).wait()
    assert by_kind(again, "restored")[0]["step"] == 8
    assert by_kind(again, "restored")[0]["digests"] == by_kind(first, "end")[0]["digests"]


def test_sharded_worlds_of_three_two_and_one(tmp_path: Path) -> None:
    """FSDP2 on 3 ranks over two nodes → 2 → 3 → one plain process, bit-exact, and losses as if nothing had happened."""
    with Job(tmp_path, every=4) as job:
        three = job.world(3, ["--mode", "fsdp2", "--until", "4", "--durable"], nodes=("a", "b")).wait()
        two = job.world(2, ["--mode", "fsdp2", "--until", "8", "--durable"], nodes=("a", "b")).wait()
        again = job.world(3, ["--mode", "fsdp2", "--until", "12", "--durable"]).wait()
        plain = job.world(1, ["--mode", "plain", "--until", "16", "--durable"]).wait()
        assert [entry.step for entry in job.commits()] == [4, 8, 12, 16]
        fetched = [line.event for line in job.cluster.output if line.event.get("event") == "fetched"]
    # the three ranks on one node were given what they want by one fetch, then the plain process by another
    assert [sorted(one["ranks"]) for one in fetched[-2:]] == [[0, 1, 2], [0]]  # type: ignore[call-overload]
    (tmp_path / "undisturbed").mkdir()
    with Job(tmp_path / "undisturbed", every=1000) as job:
        undisturbed = losses(job.world(3, ["--mode", "fsdp2", "--until", "16"]).wait())
    for before, after in ((three, two), (two, again), (again, plain)):
        assert by_kind(after, "restored")[0]["digests"] == by_kind(before, "end")[0]["digests"]
    seen = losses([*three, *two, *again, *plain])
    assert seen.keys() == undisturbed.keys()
    assert all(abs(seen[step] - undisturbed[step]) < 1e-4 for step in seen)


def test_replicas_share_the_work_and_go_on_bit_identically(tmp_path: Path) -> None:
    """DDP on 2 ranks, stopped after step 6 and started again: the end is that of a run never stopped, RNG included."""
    with Job(tmp_path, every=3) as job:
        job.world(2, ["--mode", "ddp", "--until", "6", "--durable"], nodes=("a", "b")).wait()
        resumed = job.world(2, ["--mode", "ddp", "--until", "9"], nodes=("a", "b")).wait()
        alone = job.world(1, ["--mode", "plain", "--until", "9"]).wait()
    (tmp_path / "undisturbed").mkdir()
    with Job(tmp_path / "undisturbed", every=1000) as job:
        whole = job.world(2, ["--mode", "ddp", "--until", "9"]).wait()
    assert by_kind(resumed, "restored")[0]["rng"] == "exact"
    assert by_kind(resumed, "end")[0]["digests"] == by_kind(whole, "end")[0]["digests"]
    noise = {event["step"]: event["noise"] for event in by_kind(whole, "step")}
    assert all(event["noise"] == noise[event["step"]] for event in by_kind(resumed, "step"))
    assert by_kind(alone, "restored")[0]["rng"] == "derived"
    assert by_kind(alone, "restored")[0]["digests"] == by_kind(resumed, "end")[0]["digests"]


@pytest.mark.parametrize("victim", ["trainer", "daemon", "coordinator"])
def test_what_was_not_committed_is_never_offered(tmp_path: Path, victim: str) -> None:
    """SIGKILL while a snapshot is on its way; what was committed is there, what was not is not offered, and all go on."""
    pause = tmp_path / "pause"
    pause.write_text("5")
    with Job(tmp_path, every=4) as job:
        arguments = ["--mode", "ddp", "--scale-mb", "16", "--pause-file", str(pause)]
        world = job.world(2, [*arguments, "--until", "1000000"], nodes=("a", "b"))
        job.wait_commit(4)
        pause.write_text("8")
        world.wait_event("step", step=8, staged=True)
        kill(job, world, victim)
        if victim == "trainer":
            world.ranks[0].signal(signal.SIGKILL)
        else:  # the world goes on, and its snapshots are committed again
            pause.write_text("1000000")
            job.wait_commit_after(8)
            for rank in world.ranks:
                rank.signal(signal.SIGKILL)
        for rank in world.ranks:
            rank.wait(60)
        newest = job.commits()[-1].step
        assert newest >= (4 if victim == "trainer" else 9)
        after = job.world(2, [*arguments[:-2], "--until", str(newest)], nodes=("a", "b")).wait()
        assert by_kind(after, "restored")[0]["step"] == job.commits()[-1].step


def kill(job: Job, world: World, victim: str) -> None:
    """SIGKILL it, and start a new one of it unless it is a trainer."""
    if victim == "trainer":
        world.ranks[1].signal(signal.SIGKILL)
    elif victim == "daemon":
        node = job.cluster.node("b")
        assert node.daemon is not None
        node.daemon.signal(signal.SIGKILL)
        node.daemon.wait(10)
        node.start_daemon()
    else:
        assert job.cluster.coordinator is not None
        job.cluster.coordinator.signal(signal.SIGKILL)
        job.cluster.coordinator.wait(10)
        job.cluster.start_coordinator()
