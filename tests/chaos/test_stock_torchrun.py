"""The README's way on several nodes: stock torchrun, two agents on MinIO, `kill -9` of one agent and its workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from chaos.campaign import compare, end
from chaos.scene import JOB, Scene, needed, until

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=ckptd", f"--rdzv-id={JOB}", "--max-restarts=1000000",
    "--nnodes=1:2", "--nproc-per-node=1", "--local-addr=127.0.0.1",
]  # fmt: skip


def test_the_other_agent_goes_on_resharded(tmp_path: Path) -> None:
    scene = Scene(tmp_path, minio=True, launcher=TORCHRUN)
    try:
        scene.start()
        scene.wait_commit(scene.newest_commit())
        killed = time.monotonic()
        victims = [needed(scene.nodes[1].agent).pid, scene.trainer_pid(scene.nodes[1])]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        until("the killed to be gone", lambda: not set(victims) & set(scene.pids(scene.nodes[1])), 10.0)
        until("a step of one node", lambda: any(s.seconds > killed and s.world == 1 for s in scene.steps()), 90.0)
        scene.wait_commit(scene.newest_commit())
        scene.settle()
        scene.check()
        end(scene, scene.nodes[:1])
        compare(scene)
    finally:
        scene.close()
