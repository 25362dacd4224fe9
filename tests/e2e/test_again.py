"""A job that is complete, and is started again for more steps, with a new coordinator: its daemons run on, as services do."""

from __future__ import annotations

from pathlib import Path

from ckptd.demo.cluster import Cluster, Plan

SCRIPT = """
import sys, torch, ckptd_client
model = torch.nn.Linear(4, 4)
ckpt = ckptd_client.connect()
ckpt.register(model=model)
for step in ckpt.steps(total=int(sys.argv[1])):
    print(step, file=open(sys.argv[2], "a"))
ckpt.close()
"""


def test_a_complete_job_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    script, done = tmp_path / "train.py", tmp_path / "done"
    script.write_text(SCRIPT)
    arguments = ["2", str(done)]
    cluster = Cluster(
        Plan("again", str(tmp_path / "store"), script, arguments), tmp_path, ["--every", "2", "--exit-when-complete"]
    )
    try:
        node = cluster.node("a")
        node.start_daemon()
        for arguments[0], steps in (("2", "1\n2\n"), ("4", "1\n2\n3\n4\n")):
            cluster.start_coordinator()
            node.start_agent()
            assert node.agent is not None and node.agent.wait(120.0) == 0
            assert done.read_text() == steps
            assert cluster.coordinator is not None and cluster.coordinator.wait(60.0) == 0
    finally:
        cluster.close()
