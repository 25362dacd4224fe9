"""From the parts that the daemons uploaded to a manifest in the store: the real one of ``durable.Assemble``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptd.commit.assemble import assemble
from ckptd.commit.bases import Use
from ckptd.commit.state import Entry
from ckptd.coordinator.durable import Assemble, Assembled
from ckptd.errors import CorruptError
from ckptd.model.ids import Attempt
from ckptd.model.manifest import BaseRef
from ckptd.model.part import Part
from ckptd.restore.checkpoint import open_manifest
from ckptd.store.base import Store


def assembler(store: Store, job: str) -> Assemble:
    """Raises CorruptError for parts that don't parse or don't fit together, BaseGoneError, and what the store raises."""
    sizes: dict[int, int] = {}  # stored bytes of the last commit's bases

    async def use_of(base: BaseRef, entry: Entry) -> Use:
        if base.seq not in sizes:
            try:
                sizes[base.seq] = (await open_manifest(store, job, entry.manifest)).stored_bytes
            except CorruptError:
                return Use(0, base.stored_bytes)  # whoever restores the base finds out; nothing more shall need it
        return Use(base.stored_bytes, sizes[base.seq])

    async def do(
        attempt: Attempt, world_size: int, parent: int | None, parts: Sequence[bytes], commits: Mapping[int, Entry]
    ) -> Assembled:
        decoded = [Part.decode(part) for part in parts]
        manifest, name = await assemble(store, job, attempt, world_size, parent, decoded, commits)
        uses = {base.seq: await use_of(base, commits[base.seq]) for base in manifest.bases}
        for unused in sizes.keys() - uses.keys():
            del sizes[unused]
        return Assembled(name, manifest.stored_bytes, uses)

    return do
