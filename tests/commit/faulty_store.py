"""An object store in memory that really creates only if absent, and is otherwise as unpleasant as a seed makes it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

from ckptd.errors import AlreadyExistsError, NotFoundError, UnavailableError
from ckptd.store.base import Body, Bytes, ObjectInfo, pieces_of


class FaultyStore:
    """Implements ckptd.store.base.Store. ``faults`` is the probability that a call goes wrong in one of these ways:

    - nothing happens, and the caller hears of a timeout (or a 409);
    - it happens, and the reply is lost;
    - the caller hears of a timeout, and it happens later, when nobody expects it (a stalled writer).

    Every call also lets other tasks run a random number of turns, before and after. ``created`` keeps every create that landed,
    in order; a log key that is overwritten or deleted by the code under test is an error at once.
    """

    url = "memory://faulty"

    def __init__(self, rng: random.Random | None = None, faults: float = 0.0) -> None:
        self.objects: dict[str, bytes] = {}
        self.created: list[tuple[str, bytes]] = []
        self.gets = 0
        self.faults = faults
        self._rng = rng or random.Random(0)
        self._late: set[asyncio.Task[None]] = set()

    async def put(self, key: str, data: Body) -> None:
        assert "/log/" not in key, "a log record must be created"
        content = b"".join(pieces_of(data))
        await self._do(lambda: self.objects.__setitem__(key, content))

    async def create(self, key: str, data: Bytes) -> None:
        content = bytes(data)

        def land() -> None:
            if key in self.objects:
                raise AlreadyExistsError(f"taken key={key}")
            self.objects[key] = content
            self.created.append((key, content))

        await self._do(land)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        self.gets += 1
        await self._turns()
        if self._rng.random() < self.faults:
            raise UnavailableError("timeout")
        if key not in self.objects:
            raise NotFoundError(f"no such key key={key}")
        found = self.objects[key][start:end]
        await self._turns()
        return found

    async def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(await self.get(key)), 0.0)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._turns()
        for key in [key for key in self.objects if key.startswith(prefix)]:
            yield ObjectInfo(key, len(self.objects[key]), 0.0)

    async def children(self, prefix: str) -> list[str]:
        await self._turns()
        rest = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return sorted({key.partition("/")[0] for key in rest if "/" in key})

    async def delete(self, key: str) -> None:
        raise AssertionError("the commit log deletes nothing")

    async def close(self) -> None:
        """Let the stalled writes land."""
        while self._late:
            await asyncio.gather(*self._late)

    async def _do(self, land: Callable[[], None]) -> None:
        await self._turns()
        fault = self._rng.choice(("nothing", "reply", "late")) if self._rng.random() < self.faults else None
        if fault == "nothing":
            raise UnavailableError("409: conflicting operation, try again")
        if fault == "late":
            task = asyncio.create_task(self._land_late(land))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise UnavailableError("timeout; it may still happen")
        land()
        await self._turns()
        if fault == "reply":
            raise UnavailableError("connection reset")

    async def _land_late(self, land: Callable[[], None]) -> None:
        for _ in range(self._rng.randrange(200)):
            await asyncio.sleep(0)
        try:
            land()
        except AlreadyExistsError:
            pass

    async def _turns(self) -> None:
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
