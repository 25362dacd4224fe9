"""What a node calls damaged is looked at before it is quarantined."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.coordinator.confirming import confirmer
from ckptd.coordinator.durable import LogWorker, Quarantined
from ckptd.coordinator.enact import QuarantineJob
from ckptd.errors import UnavailableError
from ckptd.pipeline.write import WriteOptions
from ckptd.store.base import Bytes
from ckptd.store.directory import DirectoryStore
from tests.coordinator.test_fruitless import Two
from tests.restore.states import ATTEMPT, JOB, save
from tests.restore.test_damage import slots


class Away(DirectoryStore):
    away = False

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        if self.away and "/data/" in key:
            raise UnavailableError("no route")
        return await super().get(key, start, end)


@pytest.mark.parametrize("damage", ["none", "stored", "missing", "away"])
async def test_only_what_is_damaged_from_here_too_is_quarantined(tmp_path: Path, damage: str) -> None:
    store = Away(tmp_path)
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    with ThreadPoolExecutor(2) as pool:
        options = WriteOptions(frame_bytes=16, segment_bytes=40)
        _, manifest = await save(store, [[slot.source()] for slot in slots()], options, pool)
    seq = await committer.commit(ATTEMPT, manifest)
    segments = sorted(tmp_path.rglob("*.seg"))  # noqa: ASYNC240
    key = str(segments[0].relative_to(tmp_path))
    if damage == "stored":
        body = bytearray(segments[0].read_bytes())
        body[3] ^= 1
        segments[0].write_bytes(body)
    elif damage == "missing":
        segments[0].unlink()
    store.away = damage == "away"

    async def no_assembling(*_: object) -> tuple[str, tuple[int, ...]]:
        raise AssertionError

    worker = LogWorker(log, committer, no_assembling, confirmer(store, JOB))
    job = QuarantineJob(seq, f"rank 1 on node b could not restore step 30: a frame's bytes segment={key} frame=0")
    if damage == "away":
        with pytest.raises(UnavailableError):  # `run` tries again until the store answers
            await worker._do(job)
        assert log.state.is_live(seq)
        return
    assert await worker._do(job) == Quarantined(seq, damage != "none")
    assert log.state.is_live(seq) == (damage == "none")


def test_a_node_that_sees_damage_where_none_is_ends_in_a_diagnosis_and_costs_no_checkpoint() -> None:
    two = Two()
    two.run()
    two.commit(100), two.commit(200)
    two.bench.log.whole = True
    two.fail()
    for _ in range(20):
        if two.over:
            break
        two.restore_badly("a segment of the checkpoint is missing segment=job/data/1-1.200.0/b.1-0.seg")
        two.fail("rank 0: exit code 1 (RestoreError)")
    assert two.over and not two.bench.log.quarantined
    assert "rank 1 on node b could not restore" in two.diagnosis() and "is missing" in two.diagnosis()
