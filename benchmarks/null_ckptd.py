"""ckptd on a directory that swallows the data of checkpoints: what is measured with it needs no store's time.

To be started as $CKPTD_EXECUTABLE. Log, layouts, indexes and manifests are real, so snapshots are committed, if for nothing.
"""

from __future__ import annotations

from pathlib import Path

from ckptd.cli import daemon
from ckptd.cli.app import main
from ckptd.config import Settings
from ckptd.store.base import Body
from ckptd.store.directory import DirectoryStore


class Swallowing(DirectoryStore):
    """Segments are gone when they are put."""

    async def put(self, key: str, data: Body) -> None:
        if not key.endswith(".seg"):
            await super().put(key, data)


def swallowing(settings: Settings) -> Swallowing:
    """In the place of `require_store`."""
    return Swallowing(Path(settings.store.url))


if __name__ == "__main__":
    daemon.require_store = swallowing
    main()
