"""A job that is complete and is started again for more steps: its daemon and its coordinator run on, as services do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptd.demo.cluster import Cluster, Plan, executable

SCRIPT = """
import sys, torch, ckptd_client
model = torch.nn.Linear(4, 4)
ckpt = ckptd_client.connect()
ckpt.register(model=model)
for step in ckpt.steps(total=int(sys.argv[1])):
    print(step, file=open(sys.argv[2], "a"))
ckpt.close()
"""
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=ckptd", "--rdzv-id=again", "--max-restarts=1000000",
    "--nnodes=1", "--nproc-per-node=1", "--local-addr=127.0.0.1", "--monitor-interval=0.1",
]  # fmt: skip


def test_a_complete_job_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    script, done = tmp_path / "train.py", tmp_path / "done"
    script.write_text(SCRIPT)
    arguments = ["", str(done)]
    cluster = Cluster(Plan("again", str(tmp_path / "store"), script, arguments, max_nodes=1), tmp_path, ["--every", "2"])

    def run(total: int, launcher: Sequence[str] | None = None, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the launcher, and see that it does just the steps that are left."""
        arguments[0] = str(total)
        node.start_agent(launcher)
        meanwhile()
        assert node.agent is not None and node.agent.wait(60.0) == 0
        assert done.read_text().split() == [str(step + 1) for step in range(total)]

    def furthest() -> int:
        command = [*executable(), "status", "--job", "again", "--socket", str(node.socket), "--json"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60.0).stdout
        step: int = json.loads(said)["coordinator"]["world"]["furthest_step"]
        return step

    def missed() -> bool:
        return any("commits wait" in line.text for line in cluster.output)

    def start_a_coordinator_when_it_is_missed() -> None:
        cluster.output.wait_for("word that none is there", missed, 60.0)
        cluster.start_coordinator()

    node = cluster.node("a")
    try:
        node.start_daemon()
        cluster.start_coordinator()
        run(2)
        assert furthest() == 2
        run(4, TORCHRUN)
        assert furthest() == 4
        run(4)
        assert cluster.coordinator is not None and cluster.coordinator.code is None
        cluster.coordinator.stop()
        cluster.start_coordinator()
        run(6)
        cluster.coordinator.stop()
        assert not missed()  # the job was complete when its coordinator went, and nobody waited for the next one
        run(8, meanwhile=start_a_coordinator_when_it_is_missed)
    finally:
        cluster.close()
