"""Copies from CUDA devices into a pinned slot, on a stream of their own beside the trainer's.

Nothing here waits on the host but `finish` and `abandon`. The order on the device is (one line a stream):

    trainer's    … step n ─┐       ┌─ sample ─┬─ forward, backward ─────┐ optimizer
    ours                   └─ now ─┘          └─ later, second sample ──┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptd_client.behind import Marks, Samples
from ckptd_client.devices.moves import Span, send
from ckptd_client.devices.pinned import Pinned
from ckptd_client.errors import SaveError

if TYPE_CHECKING:
    import torch


@cache
def _stream(device: torch.device) -> Any:
    import torch

    cuda: Any = torch.cuda  # parts of it have no types
    return cuda.Stream(device)


def _event() -> Any:
    import torch

    cuda: Any = torch.cuda
    return cuda.Event(blocking=True)  # who waits for it sleeps


class Outgoing:
    """The devices' part of one snapshot. Used by the thread that trains; "the current stream" is that of the caller."""

    def __init__(self, pinned: Pinned, slot: torch.Tensor) -> None:
        """``slot``: the slot's bytes, flat uint8, within what is pinned."""
        # Sources are kept until the devices have read them: the caching allocator would give their memory to the next one who
        # asks, whom our stream doesn't wait for.
        self._pinned, self._slot, self._kept = pinned, slot, list[Sequence[Any]]()
        self._events: dict[torch.device, Any] = {}
        self._used: set[torch.device] = set()
        self._marks: Marks | None = None
        self._samples: Samples | None = None
        self._counted: list[int] | None = None

    def now(self, spans: Sequence[Span], sources: Sequence[torch.Tensor]) -> None:
        """What anybody may write: what the current streams are told from now on comes after these copies. Raises SaveError."""
        import torch

        with self._aside(sources) as homes:
            send(self._slot, spans, sources, non_blocking=True)
        for device in homes:
            torch.cuda.current_stream(device).wait_event(self._events[device])

    def later(self, spans: Sequence[Span], sources: Sequence[torch.Tensor], samples: Samples) -> None:
        """What only the optimizers write: `fence` is to be called before they do. To be called once. Raises SaveError."""
        # On the current streams, so that the next thing that they do can't come before it.
        self._marks, self._samples = Marks(sources, samples), samples
        with self._aside(sources):
            send(self._slot, spans, sources, non_blocking=True)
            # Memory on a device is compared with itself and not with the copy: a second look there costs less than one at the
            # copy by the host. It sees in addition who wrote between the copy and the look.
            samples.again(sources)

    def fence(self) -> bool:
        """What is told to the current streams from now on comes after all copies. Returns whether they are over.

        Doesn't wait. To be called before each write of what `later` copies, wherever that is.
        """
        import torch

        if self._counted is None:
            self._counted = self._marks.counted() if self._marks is not None else []
        running = {device: event for device, event in self._events.items() if not event.query()}
        for device, event in running.items():
            torch.cuda.current_stream(device).wait_event(event)
        return not running

    def finish(self) -> list[int]:
        """Wait for the end; which of ``later`` were written before `fence`, so that their copies are of no use."""
        import torch

        self.fence()
        for event in self._events.values():
            event.synchronize()
        written = set(self._counted or ())
        if self._samples is not None:
            with ExitStack() as stack:  # the trainer's own stream may have much to do before it came to this
                for device in self._used:
                    stack.enter_context(torch.cuda.stream(_stream(device)))
                written.update(self._samples.unequal())
        self._kept.clear()
        self._marks = self._samples = None
        return sorted(written)

    def abandon(self) -> None:
        """Wait until nothing writes to the slot any more, whatever has gone wrong. Never raises."""
        for device in self._used:
            try:
                _stream(device).synchronize()
            except RuntimeError:
                pass  # then this device writes nothing any more
        self._kept.clear()

    @contextmanager
    def _aside(self, sources: Sequence[torch.Tensor]) -> Iterator[Iterable[torch.device]]:
        """On our streams, after all that the current ones have been told; at its end the events are those of now."""
        import torch

        homes = {source.device for source in sources}
        self._used |= homes
        self._kept.append(sources)
        try:
            with ExitStack() as stack:
                for device in homes:
                    _stream(device).wait_stream(torch.cuda.current_stream(device))
                    stack.enter_context(torch.cuda.stream(_stream(device)))
                yield homes
                for device in homes:
                    self._events[device] = _event()
                    self._events[device].record(_stream(device))
        except RuntimeError as error:  # no memory to pack in, a failed launch
            self.abandon()
            raise SaveError(f"copying from the device failed: {error}") from error
