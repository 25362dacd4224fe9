"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
from typing import Final

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_BODY_BYTES: Final = 32 << 20
"""Of what is received at once, and the most that glibc takes for its threshold."""
_KEPT_BYTES: Final = 128 << 20


def keep_freed_memory() -> None:
    """Have malloc use the memory of bodies again, where it is glibc's. To be called before there are threads.

    Else each body of 16 MiB is mapped, faulted in page by page and unmapped again, as the arenas of its threads happen to lie:
    17,000 to 90,000 page faults a GB of a restore, up to a tenth of its CPU. At most 128 MiB of free memory stay here.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _BODY_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
