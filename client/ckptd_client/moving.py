"""Copies of tensors. In ordinary memory by two threads where there are many bytes: one core can't use all of a machine's memory
bandwidth, and torch's own threads are switched off by torchrun (docs/decisions/0027-two-threads-copy.md). Their chunks go past
the caches where the client was built with a compiler (0028-past-the-caches.md).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

CHUNK_BYTES: Final = 8 << 20  # between two looks for work; a copy of it takes about a millisecond
BIG_BYTES: Final = 1 << 20  # of a tensor: enough to be looked at for itself
SHARED_BYTES: Final = 64 << 20  # of big tensors together: enough for a second thread to be worth its start

_move: Callable[[int, int, int], object]  # to, source, count, which must not overlap; releases the GIL
try:
    from ckptd_client._stream import copy as _move
except ImportError:  # there was no compiler when it was installed
    from ctypes import memmove as _move


class Moves:
    """Copies of tensors that lie in a row in ordinary memory, a chunk at a time, by each thread that calls `run`."""

    def __init__(self, destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
        self._chunks = deque(
            (to.data_ptr() + at, source.data_ptr() + at, min(CHUNK_BYTES, source.nbytes - at))
            for to, source in zip(destinations, sources, strict=True)
            for at in range(0, source.nbytes, CHUNK_BYTES)
        )

    def run(self) -> None:
        """Copy chunks until none is left; others may still be at theirs."""
        while self._chunks:
            try:
                to, source, count = self._chunks.popleft()
            except IndexError:
                return
            _move(to, source, count)


def copy_many(destinations: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its destination of equal shape and dtype, and wait for it where no device is concerned."""
    import torch

    if not destinations:
        return
    shared = _shared(destinations, sources)
    with torch.no_grad():
        if not shared:
            torch._foreach_copy_(destinations, sources)
            return
        moves = Moves([destinations[at] for at in shared], [sources[at] for at in shared])
        with _helped(moves):
            alone = sorted(set(range(len(sources))).difference(shared))
            if alone:
                torch._foreach_copy_([destinations[at] for at in alone], [sources[at] for at in alone])
            moves.run()


def _shared(destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> list[int]:
    """Which of them two threads should copy. None where torch does it with threads of its own, or there is only one core."""
    import torch

    if torch.get_num_threads() > 1:
        return []
    big = [at for at, source in enumerate(sources) if source.nbytes >= BIG_BYTES]
    if sum(sources[at].nbytes for at in big) < SHARED_BYTES or len(os.sched_getaffinity(0)) < 2:
        return []
    return [at for at in big if _alike(destinations[at], sources[at])]


def _alike(to: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether one's bytes can be put where the other's are, by their addresses."""
    import torch

    plain = all(type(one) in (torch.Tensor, torch.nn.Parameter) and one.is_cpu and in_a_row(one) for one in (to, source))
    return plain and to.dtype == source.dtype and to.nbytes == source.nbytes


def in_a_row(local: torch.Tensor) -> bool:
    """Whether its bytes lie in a row, wherever it is, as they are to be stored."""
    return local.is_contiguous() and not local.is_conj() and not local.is_neg()


@contextmanager
def _helped(moves: Moves) -> Iterator[None]:
    """Another thread runs them as well; it has ended when this does. Raises what went wrong there."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            moves.run()
        except BaseException as error:
            errors.append(error)

    helper = threading.Thread(target=run, name="ckptd-copy", daemon=True)
    with suppress(RuntimeError):  # no more threads in this process: all is copied here
        helper.start()
    try:
        yield
    finally:
        if helper.ident is not None:
            helper.join()  # it writes to the destinations
    if errors:
        raise errors[0]
