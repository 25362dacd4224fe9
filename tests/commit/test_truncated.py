"""A log that a lifecycle rule has cut is refused by every command, on MinIO and in a directory; a long one is read quickly."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chaos.minio import MinioServer
from ckptd.cli.app import app
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.coordinator.main import run_coordinator
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.errors import CorruptError, LogTruncatedError
from ckptd.model.keys import latest_key, log_key, state_key
from ckptd.model.records import decode
from ckptd.store.base import Bytes, Store
from ckptd.store.directory import DirectoryStore
from ckptd.store.open import open_store
from tests.commit.faulty_store import FaultyStore
from tests.commit.logs import HASH, JOB, attempt


class Counting(DirectoryStore):
    """Counts what a bill would count."""

    gets = lists = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        self.gets += 1
        return await super().get(key, start, end)


@pytest.mark.parametrize("hint", [True, False])
async def test_ten_thousand_records_in_a_directory(long_log: FaultyStore, tmp_path: Path, hint: bool) -> None:
    tail = decode(9_999, long_log.objects[log_key(JOB, 9_999)])
    wanted = [log_key(JOB, seq) for seq in range(10_000)] + [state_key(JOB, 9_999, tail.state), *([latest_key(JOB)] * hint)]
    for key in wanted:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(long_log.objects[key])
    store = Counting(tmp_path)
    assert (await CommitLog(store, JOB).load()).tail == 9_999
    assert store.gets <= 40


async def filled(store: Store) -> None:
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    for step in range(6):
        await committer.commit(attempt(step), HASH)


@pytest.fixture(params=["directory", "minio"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    if request.param == "directory":
        return str(tmp_path / "store"), {}
    server: MinioServer = request.getfixturevalue("minio")
    options = server.storage_options
    monkeypatch.setenv("CKPTD_STORE__STORAGE_OPTIONS", json.dumps(options))
    return request.getfixturevalue("minio_url"), options


LOST = {
    "the oldest": [*range(3)],
    "the first": [0],
    "one in between": [5],
    "the newest": [6],
    "all": [*range(7)],
}


@pytest.mark.parametrize("lost", LOST)
async def test_a_truncated_log_is_refused(place: tuple[str, dict[str, object]], lost: str) -> None:
    store = open_store(*place)
    await filled(store)
    for seq in LOST[lost]:
        await store.delete(log_key(JOB, seq))
    with pytest.raises(LogTruncatedError, match=rf"truncated: .* key={JOB}/log/0{{19}}\d store=.* lifecycle rules") as refused:
        await CommitLog(store, JOB).load()
    assert "Nothing was written" in str(refused.value)
    with pytest.raises(LogTruncatedError):
        await run_coordinator(store, JOB, "127.0.0.1:0", CoordinatorOptions(lease_seconds=2), ready=pytest.fail)
    await store.close()


@pytest.mark.parametrize("verb", ["ls", "verify"])
def test_commands_for_people_refuse_it_too(tmp_path: Path, verb: str) -> None:
    asyncio.run(filled(DirectoryStore(tmp_path)))
    (tmp_path / log_key(JOB, 0)).unlink()
    done = CliRunner().invoke(app, [verb, "--store", str(tmp_path), "--job", JOB])
    assert isinstance(done.exception, LogTruncatedError) and not done.stdout  # main() prints it and exits with 1


async def test_damage_at_the_tail_is_named(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await filled(store)
    key = log_key(JOB, 6)
    body = bytearray(await store.get(key))
    body[9] ^= 0x80
    (tmp_path / key).write_bytes(body)
    with pytest.raises(CorruptError, match=rf"the commit log is damaged: .*key={key} store=.*Bring the missing or damaged"):
        await CommitLog(store, JOB).load()
