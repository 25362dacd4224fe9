"""Opening a checkpoint to look into it: chosen by step or record, and what is read of it counted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Final

import typer
from rich.filesize import decimal

from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.errors import ConfigError, MissingStateError, NotFoundError
from ckptd.model.dtypes import OBJECT
from ckptd.model.layout import GLOBAL, Tensor
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.source import CountedStore, Source
from ckptd.store.base import Store

Which = Annotated[
    str, typer.Argument(metavar="STEP", help="its newest live commit; @N: the commit with record N (see `ckptd ls`)")
]
_NEAR: Final = 5


@dataclass(frozen=True, slots=True)
class Opened:
    """A commit, its content, and the store that counts what is read."""

    entry: CatalogEntry
    store: CountedStore
    source: Source

    @property
    def checkpoint(self) -> Checkpoint:
        """Its description."""
        return self.source.checkpoint

    @property
    def read(self) -> str:
        """In words."""
        return f"read {decimal(self.store.read_bytes)} of {decimal(self.checkpoint.all_bytes)} in {self.store.reads} requests"

    def plain(self) -> dict[str, object]:
        """For programs."""
        return {
            "record": self.entry.seq,
            "step": self.entry.step,
            "read_bytes": self.store.read_bytes,
            "all_bytes": self.checkpoint.all_bytes,
            "requests": self.store.reads,
        }


def parse_which(text: str) -> tuple[int | None, int | None]:
    """(step, record), one of them. Raises ConfigError."""
    digits = text.removeprefix("@")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ConfigError(f"say a step, as in 100, or a record of the log, as in @17 (see `ckptd ls`); got {text[:80]!r}")
    return (int(digits), None) if digits == text else (None, int(digits))


def choose(entries: Sequence[CatalogEntry], step: int | None, record: int | None) -> CatalogEntry:
    """The one that is meant: a step may have been committed more than once. Raises NotFoundError."""
    if record is not None:
        wanted, name = [entry for entry in entries if entry.seq == record], f"no commit has record {record}"
    elif step is not None:
        wanted, name = [entry for entry in entries if entry.step == step], f"no commit is of step {step}"
    else:
        wanted, name = [entry for entry in entries if entry.newest], "nothing is committed"
    if not wanted:
        have = ", ".join(str(entry.step) for entry in entries[-20:]) or "none"
        raise NotFoundError(f"{name}; `ckptd ls` lists them all; steps={have}")
    return max(wanted, key=lambda entry: (entry.status == Status.LIVE, entry.seq))


async def opened(store: Store, job: str, which: str, pool: ThreadPoolExecutor) -> Opened:
    """Log, manifest, layout and index are read. Raises ConfigError, NotFoundError, CorruptError, and what the store raises."""
    step, record = parse_which(which)
    entry = choose(catalog(await CommitLog(store, job).load()), step, record)
    counted = CountedStore(store)
    checkpoint = await open_checkpoint(counted, job, entry.manifest)
    return Opened(entry, counted, Source(counted, checkpoint, pool))


def find_tensor(checkpoint: Checkpoint, fqn: str, rank: int | None) -> Tensor:
    """The tensor of that name. Raises MissingStateError, which names those like it, and ConfigError for an object."""
    whose = GLOBAL if rank is None else rank
    tensors = checkpoint.layout.by_name
    found = tensors.get((fqn, whose))
    if found is not None and found.dtype != OBJECT:
        return found
    if found is not None:
        raise ConfigError(f"{fqn!r} is an object, not a tensor; `ckptd show` says what it knows of objects")
    ranks = sorted(owner for name, owner in tensors if name == fqn and owner != GLOBAL)
    if ranks:
        raise MissingStateError(f"{fqn!r} belongs to ranks; say whose with --rank ranks={ranks[:20]}")
    names = sorted({name for (name, _), tensor in tensors.items() if tensor.dtype != OBJECT})
    near = [name for name in names if fqn.lower() in name.lower()][:_NEAR] or get_close_matches(fqn, names, _NEAR)
    hint = f"did you mean {', '.join(near)}?" if near else "`ckptd show STEP --tensors '*'` lists them"
    raise MissingStateError(f"the checkpoint has no tensor {fqn!r}; {hint}")
