"""Coroutines of a library that ends them in threads of its own, on a loop in a thread of ours, which knows who is still inside.

A result of obstore's is handed over by a thread of the library: it takes the interpreter's lock, calls the loop's
`call_soon_threadsafe`, and lets the lock go a moment later. A process that ends in that moment is aborted, whatever its exit
code was to be. So the loop counts those that come through, and at exit the last one is waited for (docs/decisions/0025).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from asyncio import Handle
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from functools import cache, partial
from typing import Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_LOOK_SECONDS: Final = 0.001


class _Loop(asyncio.SelectorEventLoop):
    """``begun`` are calls of the library, and ``left`` those whose thread has nothing to do with the interpreter any more."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.left = 0

    def call_soon_threadsafe(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> Handle:
        """The library's way in, once for each call."""
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            # From here to the return the interpreter switches no threads: who sees this has the lock that this one let go.
            self.left += 1

    def submit(self, callback: Callable[[], object]) -> None:
        """Our way in."""
        super().call_soon_threadsafe(callback)


class Coroutines:
    """Runs a library's coroutines for callers on any loop."""

    def __init__(self) -> None:
        self._loop = _Loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ckptd-store-reads", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await what ``call`` returns, one future of the library's. When the caller is cancelled, it still runs to its end."""
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()
        self._loop.submit(partial(self._begin, call, result))
        return await asyncio.wrap_future(result)

    def end(self) -> None:
        """Return when all calls have ended, each by its own deadline, and their threads are out of the interpreter."""
        self._loop.submit(self._stop_when_left)
        self._thread.join()
        self._loop.close()

    def _begin(self, call: Callable[[], Awaitable[T]], result: Future[T]) -> None:
        task = self._loop.create_task(self._call(call, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, call: Callable[[], Awaitable[T]], result: Future[T]) -> None:
        try:
            future = call()
            self._loop.begun += 1
            found = await future
        except BaseException as error:
            result.set_exception(error)
            del result  # else the error holds, by its traceback, what holds it
        else:
            result.set_result(found)

    def _stop_when_left(self) -> None:
        if self._tasks or self._loop.left < self._loop.begun:
            self._loop.call_later(_LOOK_SECONDS, self._stop_when_left)
        else:
            self._loop.stop()


@cache
def coroutines() -> Coroutines:
    """Those of this process."""
    found = Coroutines()
    atexit.register(found.end)
    return found
