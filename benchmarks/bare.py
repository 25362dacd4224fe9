"""The limit of what a store can do: its library alone, obstore, PUTting and GETting bytes that lie ready in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.peers import State, empty_trash, local_of

# Of 4 to 32 MiB, 4 to 16 in flight, the best at both, with MinIO on the same 2 cores: 0.84 and 1.9 GB/s, others from 0.75, 1.5.
PART_BYTES = 16 << 20
IN_FLIGHT = 8
_TIMEOUT = "300s"


class BarePut:
    """The same bytes as objects of ``part_bytes``, several in flight; a `Contender` that can only save."""

    name = "bare put"

    def __init__(self, state: State, bucket: str, part_bytes: int = PART_BYTES, in_flight: int = IN_FLIGHT) -> None:
        self._store = _store(bucket)
        self._in_flight = in_flight
        self.parts = _parts(state, part_bytes)
        self.prefix = f"bare/{dist.get_rank()}-"

    def before(self) -> None:
        """What it overwrote the last time MinIO has kept, as it keeps what others delete."""
        if dist.get_rank() == 0:
            empty_trash()

    def start(self, number: int) -> None:
        import obstore

        async def put(at: int) -> None:
            await obstore.put_async(self._store, f"{self.prefix}{at}", self.parts[at], use_multipart=False)

        asyncio.run(_all(len(self.parts), self._in_flight, put))

    def finish(self) -> None: ...

    def load(self, state: State) -> bool:
        return False

    def close(self) -> None: ...


class BareGet:
    """Objects that it has PUT, into memory that is there and warm. ``get`` is what is timed."""

    def __init__(self, state: State, bucket: str, part_bytes: int = PART_BYTES, in_flight: int = IN_FLIGHT) -> None:
        self._put = BarePut(state, bucket, part_bytes, in_flight)
        self._put.start(0)
        self._store = _store(bucket)
        self._in_flight = in_flight
        self._warm = [np.ones(part.nbytes, np.uint8) for part in self._put.parts]

    def get(self) -> None:
        """All of them, several in flight."""
        import obstore

        async def get(at: int) -> None:
            found = await obstore.get_async(self._store, f"{self._put.prefix}{at}")
            self._warm[at][:] = np.frombuffer(await found.bytes_async(), np.uint8)

        asyncio.run(_all(len(self._warm), self._in_flight, get))

    def check(self) -> None:
        """Raises RuntimeError if these aren't the bytes."""
        if any(memoryview(warm) != part for warm, part in zip(self._warm, self._put.parts, strict=True)):
            raise RuntimeError("the bare GET brought other bytes than the bare PUT took")


def _parts(state: State, part_bytes: int) -> Sequence[memoryview]:
    """Views of each tensor's bytes, none beyond a tensor's end: nothing is copied."""
    found = []
    for tensor in map(local_of, state.values()):
        raw = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        found += [raw[start : start + part_bytes] for start in range(0, raw.nbytes, part_bytes)]
    return found


async def _all(count: int, in_flight: int, do: Callable[[int], Awaitable[None]]) -> None:
    """``do(0)`` to ``do(count - 1)``, so many at once."""
    left = iter(range(count))

    async def worker() -> None:
        for at in left:
            await do(at)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())


def _store(bucket: str) -> Any:
    """As ckptd's own driver has it: unsigned payload, no repetition."""
    from obstore.store import S3Store

    return S3Store(
        bucket.removeprefix("s3://"),
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        region=os.environ["AWS_DEFAULT_REGION"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        unsigned_payload=True,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": _TIMEOUT},
        retry_config={"max_retries": 0},
    )
