"""`CkptdReader`: dcp.load of any committed checkpoint of any job."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import secrets
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ckptd_client.dcp.apart import check_covered, tensors_of, want_of
from ckptd_client.dcp.meta import META, OWN, RANK_META, Meta, read_meta, read_own
from ckptd_client.dcp.names import check_step, is_id, named, parse_id
from ckptd_client.dcp.opened import Opened
from ckptd_client.dcp.truth import Misplaced, misplaced, state_of
from ckptd_client.errors import MissingStateError, RestoreError
from ckptd_client.messages.restoring import Stored, Want
from ckptd_client.regions import dtype_of


@dataclasses.dataclass(frozen=True, slots=True)
class _Seat:
    """Which commit a rank reads, and its place among the readers once it is known."""

    seq: int
    rank: int
    size: int


class CkptdReader(StorageReader):
    """Reads step ``step`` of job ``checkpoint_id`` (or "JOB/STEP"), the newest checkpoint when none is named.

    No ranks of the job need to run: it is read through the daemon of this node, which fetches only the regions that are asked
    for, verifies each byte, and keeps the checkpoint from being deleted meanwhile. Also reads what `Checkpointer.step` and
    `save` have stored, tensors by their names. With no step the ranks may see different newest checkpoints when one is
    committed just now: then `dcp.load` raises on all of them. Raises ConfigError for names and steps that can't be.
    """

    def __init__(self, checkpoint_id: str | os.PathLike[str], step: int | None = None) -> None:
        super().__init__()
        self.job, found = parse_id(checkpoint_id)
        self.step = check_step(step) if step is not None else found
        self.load_id = ""
        self._opened: Opened | None = None
        self._end: Callable[[], object] | None = None
        self._meta = Meta({}, {})
        self._apart = False
        self._failed: Exception | None = None
        self._rank = 0
        self.reset()

    @property
    def checkpoint_id(self) -> str:
        """``JOB`` or ``JOB/STEP``."""
        return named(self.job, self.step)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is ``JOB`` or ``JOB/STEP``."""
        return is_id(checkpoint_id)

    def close(self) -> None:
        """Let go of the checkpoint. Reading again opens it again."""
        self._opened = None
        if self._end is not None:
            self._end()
            self._end = None

    # ---- the calls of dcp.load, in their order

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new load, of this checkpoint if it is given. Raises ConfigError."""
        if checkpoint_id:
            job, step = parse_id(checkpoint_id)
            self.step = step if step is not None or job != self.job else self.step
            self.job = job
        self.load_id = secrets.token_hex(8)
        self._failed = None
        self.close()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Open the checkpoint. Raises RestoreError when there is none, DaemonUnavailableError and its kin.

        Because a parameter is named kwargs, DCP calls it a second time when it has raised, with a ``rank``: then for what that
        rank has saved with use_collectives=False. Without one such a checkpoint is refused, for DCP to see which it is.
        """
        rank = kwargs.get("rank")
        if rank is not None and self._failed is not None:
            raise self._failed  # nothing to do with ranks
        try:
            here = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            opened = self._opened
            if rank is None or opened is None or opened.rank != rank:
                opened = self._open(None, here if rank is None else rank)
            meta = read_meta(opened.info.objects.get(META))
        except Exception as error:
            self._failed = error
            raise
        self._apart = meta.apart
        if meta.apart:
            meta = self._meta_of(opened, rank)
        self._meta = meta
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for fqn, tensor in self._tensors(opened).items():
            found[fqn] = BytesStorageMetadata() if fqn in meta.lengths else _tensor_metadata(tensor)
        at = named(self.job, opened.info.step)
        return Metadata(found, meta.planner, {}, StorageMeta(checkpoint_id=at, load_id=self.load_id))

    def _meta_of(self, opened: Opened, rank: int | None) -> Meta:
        at, size = named(self.job, opened.info.step), opened.info.world_size
        if rank is None:
            raise RestoreError(f"{at} was saved with use_collectives=False: each of its {size} ranks has metadata of its own")
        body = opened.info.rank_objects.get(RANK_META)
        if body is None:
            raise RestoreError(
                f"{at} was saved with use_collectives=False by {size} ranks, of which each gets back what it had; there is"
                f" nothing for rank {rank}: load it on {size}"
            )
        return read_meta(body)

    def _tensors(self, opened: Opened) -> dict[str, Stored]:
        return tensors_of(opened.own, self._meta) if self._apart else opened.tensors

    def _open(self, seq: int | None, rank: int = 0) -> Opened:
        opened = Opened(self.job, self.step, seq, rank)
        self.close()
        self._opened = opened
        self._end = weakref.finalize(self, opened.close)
        return opened

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """DCP passes ``rank`` because a parameter is named kwargs."""
        self._rank = kwargs.get("rank") or 0

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Say which commit this rank has opened."""
        if self._opened is None:
            raise RestoreError("read_metadata() comes first")
        return dataclasses.replace(plan, storage_data=_Seat(self._opened.info.seq, self._rank, 1))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """All ranks must read one commit (I5). Raises RestoreError when they don't."""
        seqs = {plan.storage_data.seq for plan in plans}
        if len(seqs) > 1:
            raise RestoreError(
                "a checkpoint was committed while the ranks looked for the newest one; load again, or name the step"
                f" job={self.job} records={sorted(seqs)}"
            )
        return [
            dataclasses.replace(plan, storage_data=_Seat(plan.storage_data.seq, rank, len(plans)))
            for rank, plan in enumerate(plans)
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what the plan names. Raises MissingStateError, RestoreError and their kin; the state is then undefined."""
        opened, seat = self._opened, plan.storage_data
        own: dict[str, Any] = {}
        seated = isinstance(seat, _Seat) and not self._apart
        if seated and opened is not None and seat.size == opened.info.world_size > 1:
            if seat.rank != opened.rank:  # nobody knew which one this is when it was opened
                opened = self._open(seat.seq, seat.rank)
            own = read_own(opened.info.rank_objects.get(OWN))
        elif opened is None:
            opened = self._open(seat.seq if isinstance(seat, _Seat) else None, self._rank)
        try:
            work = _Work(self._tensors(opened), self._meta, own, planner)
            elsewhere = dict(misplaced(state_of(planner)))
            if self._apart:
                check_covered(state_of(planner), work.tensors, plan.items, elsewhere)
            for fqn, there in elsewhere.items():
                work.add_whole(fqn, there)
            for item in plan.items:
                if item.dest_index.fqn not in elsewhere:
                    work.add(item)
            opened.read(work.wants, work.memory)
            for finish in work.finish:
                finish()
        finally:
            self.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _tensor_metadata(tensor: Stored) -> TensorStorageMetadata:
    dtype = dtype_of(tensor.dtype)
    if dtype is None:
        raise MissingStateError(f"tensor {tensor.fqn!r} has a dtype that this torch lacks dtype={tensor.dtype}")
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in tensor.regions]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(tensor.shape), chunks)


class _Work:
    """What to read, where to, and what to do when it is there."""

    def __init__(self, tensors: dict[str, Stored], meta: Meta, own: dict[str, Any], planner: LoadPlanner) -> None:
        self.wants: list[Want] = []
        self.memory: list[torch.Tensor] = []
        self.finish: list[Callable[[], None]] = []
        self.tensors, self._meta, self._own, self._planner = tensors, meta, own, planner

    def add(self, item: ReadItem) -> None:
        """Raises MissingStateError, and what the planner raises."""
        fqn = item.storage_index.fqn
        stored = self.tensors.get(fqn)
        if stored is None or (item.type == LoadItemType.BYTE_IO) != (fqn in self._meta.lengths):
            raise MissingStateError(f"the checkpoint has no such item fqn={fqn!r} type={item.type.name}")
        if item.type == LoadItemType.BYTE_IO:
            self._bytes(item, stored)
        else:
            self._tensor(item, stored)

    def add_whole(self, fqn: str, there: Misplaced) -> None:
        """This rank's part of a DTensor, whatever the plan says of it."""
        stored = self.tensors.get(fqn)
        if stored is None:
            return  # a partial load; a strict one has been refused by the planner
        source = torch.empty(there.sizes, dtype=dtype_of(stored.dtype))
        self._want(stored, there.offsets, there.sizes, source)
        self.finish.append(lambda: (there.local.copy_(source), None)[1])

    def _bytes(self, item: ReadItem, stored: Stored) -> None:
        own = self._own.get(stored.fqn)
        length = self._meta.lengths[stored.fqn]
        if type(own) is bytes:
            body = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else torch.empty(0, dtype=torch.uint8)
        else:
            if stored.dtype != "uint8" or len(stored.shape) != 1 or length > stored.shape[0]:
                raise RestoreError(f"the bytes item is malformed fqn={stored.fqn!r} length={length} stored={stored.shape}")
            body = torch.empty(length, dtype=torch.uint8)
            self._want(stored, (0,), (length,), body)
        self.finish.append(lambda: self._planner.load_bytes(item, io.BytesIO(body.numpy().tobytes())))

    def _tensor(self, item: ReadItem, stored: Stored) -> None:
        target = self._planner.resolve_tensor(item).detach()
        lengths = tuple(item.lengths)
        if tuple(target.shape) != lengths:
            raise MissingStateError(f"req {item.storage_index} mismatch sizes {tuple(target.shape)} vs {lengths}")
        base = item.storage_index.offset or (0,) * len(lengths)
        offsets = tuple(b + o for b, o in zip(base, item.storage_offsets, strict=True))
        source = self._own_tensor(stored, offsets, lengths)
        if source is None:
            direct = target.dtype == dtype_of(stored.dtype) and target.is_contiguous()
            direct = direct and not target.is_conj() and not target.is_neg()
            source = target if direct else torch.empty(lengths, dtype=dtype_of(stored.dtype))
            self._want(stored, offsets, lengths, source)

        def commit() -> None:
            if source is not target:
                target.copy_(source)
            self._planner.commit_tensor(item, target)

        self.finish.append(commit)

    def _own_tensor(self, stored: Stored, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor | None:
        """What this rank itself had under that name, if it was kept."""
        own = self._own.get(stored.fqn)
        if type(own) is not list or len(own) != 3 or own[:2] != [stored.dtype, list(stored.shape)] or type(own[2]) is not bytes:
            return None
        dtype = dtype_of(stored.dtype)
        if dtype is None or not own[2] or len(own[2]) != math.prod(stored.shape) * dtype.itemsize:
            return None
        whole = torch.frombuffer(bytearray(own[2]), dtype=dtype).view(stored.shape)
        for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            whole = whole.narrow(dim, offset, length)
        return whole

    def _want(self, stored: Stored, offsets: tuple[int, ...], sizes: tuple[int, ...], into: torch.Tensor) -> None:
        if math.prod(sizes):
            self.wants.append(want_of(stored, self._meta.parts, offsets, sizes))
            self.memory.append(into.reshape(-1).view(torch.uint8))
