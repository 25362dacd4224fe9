"""Reads by the library's coroutines: what comes of them, and that a process may end right after one."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from chaos.minio import ACCESS_KEY, REGION, SECRET_KEY, MinioServer
from ckptd.errors import NotFoundError
from ckptd.store.coroutines import Coroutines
from ckptd.store.open import open_store
from tests.waiting import eventually

# Without the wait for the library's threads, one in eight of such processes is aborted on a busy machine.
PROCESSES, AT_ONCE = 32, 8
READ = """
import asyncio, sys
from ckptd.store.open import open_store
url, endpoint, key, secret, region = sys.argv[1:]
options = {"endpoint_url": endpoint, "key": key, "secret": secret, "client_kwargs": {"region_name": region}}
assert asyncio.run(open_store(url, options).get("k", 1, 3)) == b"bc"
"""


def options_of(minio: MinioServer) -> dict[str, object]:
    return {
        "endpoint_url": minio.endpoint,
        "key": ACCESS_KEY,
        "secret": SECRET_KEY,
        "client_kwargs": {"region_name": REGION},
    }


async def test_processes_that_end_right_after_a_read_end_with_their_own_code(minio: MinioServer, tmp_path: Path) -> None:
    url = f"{minio.make_bucket('ends')}/{secrets.token_hex(4)}"
    store = open_store(url, options_of(minio))
    await store.put("k", b"abcd")
    (tmp_path / "read.py").write_text(READ)
    command = [sys.executable, str(tmp_path / "read.py"), url, minio.endpoint, ACCESS_KEY, SECRET_KEY, REGION]

    async def codes(count: int) -> list[int]:
        return [
            (await asyncio.to_thread(subprocess.run, command, stderr=subprocess.PIPE, timeout=60, check=False)).returncode
            for _ in range(count)
        ]

    ended = await asyncio.gather(*(codes(PROCESSES // AT_ONCE) for _ in range(AT_ONCE)))
    assert Counter(chain.from_iterable(ended)) == {0: PROCESSES}


async def test_what_a_read_raises_reaches_its_caller(minio: MinioServer) -> None:
    store = open_store(minio.make_bucket("raises"), options_of(minio))
    with pytest.raises(NotFoundError, match="k"):
        await store.get("k", 0, 10)


async def test_a_cancelled_call_runs_to_its_end_and_is_waited_for() -> None:
    coroutines, began, going = Coroutines(), asyncio.Event(), list[asyncio.Future[int]]()
    mine = asyncio.get_running_loop()

    def call() -> asyncio.Future[int]:
        """As the library: what it gives out is ended by a thread of its own."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        going.append(future)
        mine.call_soon_threadsafe(began.set)
        return future

    caller = asyncio.create_task(coroutines.run(call))
    await began.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not going[0].done()
    end = asyncio.create_task(asyncio.to_thread(coroutines.end))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(end), 0.05)
    await asyncio.to_thread(going[0].get_loop().call_soon_threadsafe, going[0].set_result, 1)
    await eventually(end.done, "the call was waited for")
    await end
    assert going[0].result() == 1


async def test_an_error_before_the_library_has_begun_is_the_callers_and_holds_up_nobody() -> None:
    coroutines = Coroutines()

    def call() -> asyncio.Future[int]:
        raise ValueError("bad words")

    with pytest.raises(ValueError, match="bad words"):
        await coroutines.run(call)
    await asyncio.wait_for(asyncio.to_thread(coroutines.end), 10)
