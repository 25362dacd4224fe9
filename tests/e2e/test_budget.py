"""The daemon's budget of memory, kept by a real one that drains to a real store."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from chaos.minio import ACCESS_KEY, REGION, SECRET_KEY, MinioServer
from ckptd.demo.process import Process
from ckptd.pipeline.write import ENCODED
from tests.e2e.harness import RUN_SECONDS, Job

MIB = 1 << 20
SAMPLE_SECONDS = 0.005
# argv: MiB of state. The first save makes the arena and whatever else is made once.
TRAINER = """
import sys
import torch, ckptd_client
state = {f"w{i}": torch.randn(int(sys.argv[1]) << 12, 64) for i in range(4)}
with ckptd_client.connect() as checkpointer:
    for step in range(1, 3):
        print("save", step, flush=True)
        checkpointer.save(state, step).wait(120.0)
        for tensor in state.values():
            tensor.add_(1.0)
"""


def own_bytes(pid: int) -> int:
    """What a process holds besides shared memory."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")) * 1024


@pytest.mark.parametrize(
    ("codec", "memory_mib", "most_mib"), [("raw", 512, 24), (ENCODED, 64, 64 + 24), (ENCODED, 512, 160 + 24)]
)
def test_a_drain_stays_within_its_memory(
    tmp_path: Path, minio: MinioServer, minio_url: str, codec: str, memory_mib: int, most_mib: int
) -> None:
    environment = {
        "AWS_ENDPOINT_URL": minio.endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "CKPTD_DAEMON__CODEC": codec,
        "CKPTD_DAEMON__MEMORY_BYTES": str(memory_mib * MIB),
        "CKPTD_STORE__UPLOAD_BYTES_PER_SECOND": str(200 * MIB),  # slow enough that all that may wait does wait
    }
    with Job(tmp_path, every=1_000_000, store=minio_url, environment=environment) as job:
        node = job.node("a")
        assert node.daemon is not None
        before, peak = own_bytes(node.daemon.pid), 0
        command = [sys.executable, "-c", TRAINER, "128"]
        trainer = Process("trainer", command, {**node.environment, "CKPTD_JOB": job.name}, job.cluster.output)

        give_up_at = time.monotonic() + RUN_SECONDS
        while trainer.code is None and time.monotonic() < give_up_at:
            peak = max(peak, own_bytes(node.daemon.pid))
            time.sleep(SAMPLE_SECONDS)
        assert trainer.code == 0, [line.text for line in job.cluster.output if line.source == "trainer"]
    assert peak <= before + most_mib * MIB
    assert peak <= 512 * MIB
    if codec != "raw":
        assert peak >= before + 32 * MIB  # bodies were there
