"""From the parts that the daemons uploaded to a manifest in the store: the real one of ``durable.Assemble``."""

from __future__ import annotations

from collections.abc import Sequence

from ckptd.commit.assemble import assemble
from ckptd.coordinator.durable import Assemble
from ckptd.model.ids import Attempt
from ckptd.model.part import Part
from ckptd.store.base import Store


def assembler(store: Store, job: str) -> Assemble:
    """Raises CorruptError for parts that don't parse or don't fit together, and what the store raises."""

    async def do(attempt: Attempt, world_size: int, parent: int | None, parts: Sequence[bytes]) -> tuple[str, Sequence[int]]:
        decoded = [Part.decode(part) for part in parts]
        manifest, name = await assemble(store, job, attempt, world_size, parent, decoded)
        return name, manifest.bases

    return do
