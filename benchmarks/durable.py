"""How long a save takes until it is durable, beside a bare PUT of the same bytes and DCP's `save`."""

from __future__ import annotations

from benchmarks.result import Result
from benchmarks.rounds import compete


def measure(total_bytes: int, rounds: int) -> list[Result]:
    """From the call of `save` to the handle's `durable` (the commit is in the log), to MinIO on the same cores."""
    return [compete("durable", "seconds from save() to durable, the slower rank", "s3fs put", total_bytes, rounds)]
