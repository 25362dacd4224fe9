"""`--slice 0:2,:4`, in the words of NumPy without steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckptd.errors import ConfigError
from ckptd.model.region import Region

_PART = re.compile(r"(-?\d{1,18})?(:)?(-?\d{1,18})?")


def parse_slice(text: str, shape: Sequence[int]) -> tuple[Region, tuple[int, ...]]:
    """(the region, its shape without the dimensions of which one index was asked for).

    Dimensions that aren't named are whole. Raises ConfigError for what is no slice, or lies outside of ``shape``.
    """
    parts = text.split(",") if text.strip() else []
    if len(parts) > len(shape):
        raise ConfigError(f"--slice {text} has {len(parts)} dimensions, the tensor has {len(shape)}: {list(shape)}")
    offsets, sizes, kept = [], [], []
    for dim, whole in enumerate(shape):
        part = parts[dim].strip() if dim < len(parts) else ":"
        found = _PART.fullmatch(part)
        if found is None or not part:
            raise ConfigError(f"--slice {text}: {part!r} is neither an index nor from:to, as in 0:2,:4,-1 (no steps)")
        first, colon, last = found.groups()
        if colon:
            low, high, _ = slice(_int(first), _int(last)).indices(whole)
            high = max(low, high)
        else:
            low = int(first) + (whole if int(first) < 0 else 0)
            high = low + 1
            if not 0 <= low < whole:
                raise ConfigError(f"--slice {text}: index {first} is outside of dimension {dim}, which has {whole}")
        offsets.append(low)
        sizes.append(high - low)
        if colon:
            kept.append(high - low)
    return Region(tuple(offsets), tuple(sizes)), tuple(kept)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
