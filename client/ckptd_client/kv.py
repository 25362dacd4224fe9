"""The store that the agents of one generation share: keys and values kept by the job's coordinator, reached through the daemon.

Why not a TCPStore on the first node: docs/decisions/0002-agents-store-through-the-coordinator.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from torch.distributed import DistStoreError

from ckptd_client.agent_link import AgentLink, JobCompleteError
from ckptd_client.errors import CkptdError
from ckptd_client.messages.agents import KvAdd, KvGet, KvSet, KvValue
from ckptd_client.messages.hello import Gen

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # mypy doesn't see torch.distributed's conditional export
else:
    from torch.distributed import Store


class DaemonStore(Store):
    """What torch's agents need of a `torch.distributed.Store`: set, get, add, wait, multi_get, multi_set, timeouts.

    Once the job is complete every wait ends at once and reads are empty: an agent in the exit barrier mustn't wait for the
    agent of a node that died after all ranks had finished. A wait fails early, too, when the generation is over. Failures
    and timeouts are `torch.distributed.DistStoreError`, which torch's barrier expects.
    """

    def __init__(self, link: AgentLink, generation: Gen) -> None:
        super().__init__()
        self._link = link
        self._generation = generation
        self._settled: dict[str, bytes] = {}

    def settle(self, values: Mapping[str, bytes]) -> None:
        """From here on answer these keys in this process, whatever becomes of the daemon; writes to them are dropped."""
        self._settled.update(values)

    def set(self, key: str, value: str | bytes) -> None:
        """Write ``key`` for all agents of the generation."""
        self.multi_set([key], [value])

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write several keys, not as one."""
        pairs = [(key, _bytes(value)) for key, value in zip(keys, values, strict=True) if key not in self._settled]
        numbers = [self._link.begin(partial(KvSet, generation=self._generation, key=key, value=value)) for key, value in pairs]
        with suppress(JobCompleteError):
            self._finish(numbers, [key for key, _ in pairs], self._timeout())

    def add(self, key: str, value: int) -> int:
        """Add to a counter (0 when new) and return the sum; done once, however often the daemon restarts meanwhile."""
        try:
            number = [self._link.begin(partial(KvAdd, generation=self._generation, key=key, amount=value))]
            (total,) = self._finish(number, [key], self._timeout())
        except JobCompleteError:
            return 0
        return int(total)

    def get(self, key: str) -> bytes:
        """Wait for ``key`` for as long as the store's timeout, and read it."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Wait for all ``keys`` together, and read them."""
        return self._read(keys, self._timeout())

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all ``keys`` are there."""
        self._read(keys, self._timeout() if timeout is None else timeout)

    def _timeout(self) -> timedelta:
        timeout: timedelta = self.timeout  # type: ignore[attr-defined]  # there, but missing in torch's stub
        return timeout

    def _read(self, keys: Sequence[str], timeout: timedelta) -> list[bytes]:
        missing = [key for key in keys if key not in self._settled]
        numbers = [self._link.begin(partial(KvGet, generation=self._generation, key=key)) for key in missing]
        try:
            found = dict(zip(missing, self._finish(numbers, missing, timeout), strict=True))
        except JobCompleteError:
            found = {}
        return [self._settled.get(key, found.get(key, b"")) for key in keys]

    def _finish(self, numbers: list[int], keys: Sequence[str], timeout: timedelta) -> list[bytes]:
        """The values that answer the requests ``numbers``, in order; those left over by an error are given up, too."""
        deadline = time.monotonic() + timeout.total_seconds()
        values = []
        try:
            for number in numbers:
                reply = self._link.finish(number, deadline)
                values.append(reply.value if isinstance(reply, KvValue) else b"")
        except JobCompleteError:
            raise
        except CkptdError as error:
            key = keys[len(values)]
            raise DistStoreError(f"{error} key={key!r} generation={self._generation} timeout={timeout}") from error
        finally:
            self._link.give_up(numbers)
        return values


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
