"""One training that goes on in another way after each checkpoint: real daemons, coordinator, gloo groups and files.

Equality is judged by digests that the trainer takes of its live full tensors, never through our capture.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import Job, by_kind, losses

TRAINER = Path(__file__).with_name("mesh_trainer.py")
EVERY = 3
WAYS = [("ddp", 4), ("fsdp2", 3), ("hsdp", 4), ("tp", 4), ("plain", 1), ("pp", 2)]


def test_a_training_goes_on_in_any_layout(tmp_path: Path) -> None:
    """Bit for bit where the last one ended, and with the losses of a run that nothing disturbed."""
    seen, last = {}, None
    with Job(tmp_path, every=EVERY) as job:
        for number, (mode, world) in enumerate(WAYS):
            until = str(EVERY * (number + 1))
            events = job.world(world, ["--mode", mode, "--until", until], nodes=("a", "b"), script=TRAINER).wait()
            if last is not None:
                assert by_kind(events, "restored")[0]["digests"] == last, mode
            last = by_kind(events, "end")[0]["digests"]
            seen |= losses(events)
        assert [entry.step for entry in job.commits()] == [EVERY * (n + 1) for n in range(len(WAYS))]
    (tmp_path / "undisturbed").mkdir()
    with Job(tmp_path / "undisturbed", every=1000) as job:
        arguments = ["--mode", "plain", "--until", str(EVERY * len(WAYS))]
        undisturbed = losses(job.world(1, arguments, script=TRAINER).wait())
    assert seen.keys() == undisturbed.keys()
    assert all(abs(seen[step] - undisturbed[step]) < 1e-5 for step in seen), (seen, undisturbed)


def test_what_is_each_ranks_own_comes_back_to_it_or_to_nobody(tmp_path: Path) -> None:
    with Job(tmp_path, every=EVERY) as job:
        job.world(2, ["--mode", "ddp", "--own", "--until", "3"], nodes=("a", "b"), script=TRAINER).wait()
        again = job.world(2, ["--mode", "ddp", "--own", "--until", "6"], nodes=("a", "b"), script=TRAINER).wait()
        assert by_kind(again, "restored")[0]["step"] == 3
        alone = job.world(1, ["--mode", "plain", "--own", "--until", "9"], script=TRAINER)
        assert alone.ranks[0].wait(60) == 1
        job.cluster.output.wait_for("its output", lambda: job.cluster.output.ended(alone.ranks[0].name), 10.0)
        assert "saved for 2 ranks, and there are 1" in alone.text(alone.ranks[0].name)
