"""Copying behind the training: memory to memory on a thread of its own, and whether what was copied is what was meant.

A hidden copy is right if nobody wrote the tensor between `Behind()` and the end of its copy. Two things tell:

* version counters, compared in `finish`, on the thread that trains: it is in no operation then, so every write of its own has
  been counted. (A look from the copying thread would not do: torch counts a write after it, so a tensor may be half written and
  not yet counted.) What torch's fused optimizers and writes through ``.data`` or numpy do is not counted at all.
* a sample: one word of every 16 KiB, taken before the copy and compared with the same places *of the copy*. It sees every write
  of 16 KiB or more in a row that changes the sampled word and was before the copier. A smaller one in between is not seen.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from operator import attrgetter, ne
from typing import TYPE_CHECKING, Final

from ckptd_client.moving import Moves

if TYPE_CHECKING:
    import torch

SAMPLE_BYTES: Final = 16 << 10
SAMPLES_MAX: Final = 32_000  # of one tensor: from 32,768 elements on torch would start threads for it
_ALIGN: Final = 16
_version = attrgetter("_version")


class Samples:
    """Words of tensors, some from each. Its buffers are made once, for contiguous tensors like these (size, dtype, device)."""

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        homes: dict[torch.device, list[int]] = {}
        for at, tensor in enumerate(like):
            homes.setdefault(tensor.device, []).append(at)
        self._parts = [(these, _Part([like[at] for at in these])) for these in homes.values()]

    def take(self, tensors: Sequence[torch.Tensor]) -> None:
        """Remember what they hold now."""
        for these, part in self._parts:
            part.take(part.into_first, [tensors[at] for at in these])

    def again(self, tensors: Sequence[torch.Tensor]) -> None:
        """Look a second time."""
        for these, part in self._parts:
            part.take(part.into_second, [tensors[at] for at in these])

    def unequal(self) -> list[int]:
        """Which of them held something else the second time, bit for bit."""
        return sorted(these[at] for these, part in self._parts for at in part.unequal())

    def differing(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Which of them hold something else than was remembered."""
        self.again(tensors)
        return self.unequal()


class _Part:
    """The samples of tensors of one device, in its memory: 1/4096 of fp32's, twice."""

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        import torch

        self._words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
        self._strides, spans, end = [], [], 0
        for words in map(self._flat, like):
            stride = max(1, SAMPLE_BYTES // words.element_size(), -(-words.numel() // SAMPLES_MAX))
            count = -(-words.numel() // stride)
            self._strides.append(stride)
            spans.append((end, end + count * words.element_size(), words.dtype))
            end += -(-count * words.element_size() // _ALIGN) * _ALIGN
        self._first, self._second = (torch.zeros(end, dtype=torch.uint8, device=like[0].device) for _ in range(2))
        self.into_first, self.into_second = (
            [buffer[start:stop].view(dtype) for start, stop, dtype in spans] for buffer in (self._first, self._second)
        )

    def _flat(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().view(-1).view(self._words[tensor.element_size()])

    def take(self, into: list[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
        import torch

        torch._foreach_copy_(into, [self._flat(t)[::stride] for t, stride in zip(tensors, self._strides, strict=True)])

    def unequal(self) -> list[int]:
        import torch

        if torch.equal(self._first, self._second):
            return []
        pairs = zip(self.into_first, self.into_second, strict=True)
        return [at for at, (first, second) in enumerate(pairs) if not torch.equal(first, second)]


class Marks:
    """What tells later whether tensors were written since now."""

    def __init__(self, tensors: Sequence[torch.Tensor], samples: Samples) -> None:
        self.tensors, self._samples = list(tensors), samples
        self._versions = list(map(_version, tensors))
        samples.take(tensors)

    def counted(self) -> list[int]:
        """Those whose version counters have moved."""
        return [at for at, moved in enumerate(map(ne, map(_version, self.tensors), self._versions)) if moved]

    def written(self, now: Sequence[torch.Tensor] | None = None) -> list[int]:
        """Those of which either tells; the sample is compared with ``now``, by default with the tensors themselves."""
        return sorted({*self.counted(), *self._samples.differing(self.tensors if now is None else now)})


class Behind:
    """A copy of contiguous tensors in ordinary memory, running on a thread. Who waits for its end takes a share of the work."""

    def __init__(self, destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], samples: Samples) -> None:
        self._marks, self._copies = Marks(sources, samples), destinations
        self._moves = Moves(destinations, sources)
        self._samples = samples
        self._helped = False
        self._differing: list[int] | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="ckptd-copy", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no more threads in this process: all is copied in finish()

    def _run(self) -> None:
        try:
            self._moves.run()
            if not self._helped:  # then every chunk was this thread's, and is copied
                self._differing = self._samples.differing(self._copies)
        except BaseException as error:
            self._error = error

    def finish(self) -> list[int]:
        """Wait for the end of the copy; which tensors were written meanwhile, so that their copies are of no use.

        To be called where the tensors are not being written. Raises what went wrong on the thread.
        """
        self._helped = True
        self._moves.run()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        differing = self._samples.differing(self._copies) if self._differing is None else self._differing
        return sorted({*self._marks.counted(), *differing})
