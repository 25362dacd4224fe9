"""`ckptd` on a machine whose fsspec knows one more file system: overwriting://, which takes mode="create" and overwrites.

Servers that drop the condition of a conditional write in silence look like this to their client.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ckptd.cli import main


class Overwriting(MemoryFileSystem):
    protocol = "overwriting"
    store: dict[str, object] = {}  # noqa: RUF012 - as in its base class
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("overwriting://", "memory://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        super().pipe_file(path, value, mode="overwrite", **options)


if __name__ == "__main__":
    fsspec.register_implementation("overwriting", f"{__name__}.Overwriting")
    main()
