"""`CkptdWriter`: dcp.save and dcp.async_save into a ckptd job."""

from __future__ import annotations

import dataclasses
import io
import os
import secrets
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ckptd_client.capture import Piece
from ckptd_client.dcp.apart import part_name, token_of, world_of
from ckptd_client.dcp.meta import META, OWN, OWN_BYTES, OWN_ITEM_BYTES, RANK_META, Meta
from ckptd_client.dcp.names import check_step, is_id, named, parse_id
from ckptd_client.dcp.saver import Saver, Seat, saver_of
from ckptd_client.dcp.stager import CkptdStager
from ckptd_client.dcp.truth import Misplaced, misplaced, state_of
from ckptd_client.errors import ConfigError, SaveError, UnsupportedStateError
from ckptd_client.handle import Handle
from ckptd_client.regions import dtype_name
from ckptd_client.structure import Structure
from ckptd_client.tree import Collected
from ckptd_client.typed import encode

_ROOM: Final = 1024  # bytes items differ by some bytes from save to save: a place is a multiple of this
_stager: Final = CkptdStager()


class CkptdWriter(StorageWriter):
    """Writes DCP checkpoints into job ``checkpoint_id`` (or "JOB/STEP") as step ``step``; without one, the newest's plus 1.

    `dcp.save` returns when the checkpoint is durable: committed in the store, for all ranks; it raises on all ranks when it is
    not. A step may be saved again: a reader of it gets the last one. What is loaded before is up to the caller; a checkpoint's
    parent is the one that was committed before it. A tensor or value that several ranks have under one name is stored from one
    of them, as DCP does it, and up to 64 KiB from each: the same number of ranks gets back what each of them had.
    With use_collectives=False each rank stores all that it has, and gets back just that; a step must be given.

    Also an `AsyncStager` (`CkptdStager`), so `dcp.async_save` needs no other. Picklable. Raises ConfigError for names and
    steps that can't be.
    """

    _synchronize_after_execute = True

    def __init__(self, checkpoint_id: str | os.PathLike[str], step: int | None = None) -> None:
        super().__init__()
        self.job, found = parse_id(checkpoint_id)
        self.step = check_step(step) if step is not None else found
        self._begin()

    def _begin(self) -> None:
        self.save_id = secrets.token_hex(8)
        self._draft: Meta | None = None
        self._open: tuple[Handle, _Share, Collected] | None = None
        self._seals_last = True
        self._apart: Seat | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job, "step": self.step}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def checkpoint_id(self) -> str:
        """``JOB`` or ``JOB/STEP``."""
        return named(self.job, self.step)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is ``JOB`` or ``JOB/STEP``."""
        return is_id(checkpoint_id)

    # ---- the calls of dcp.save, in their order

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new checkpoint, under this id if it is given. Raises ConfigError."""
        if checkpoint_id:
            job, step = parse_id(checkpoint_id)
            self.step = step if step is not None or job != self.job else self.step
            self.job = job
        self._begin()

    def storage_meta(self) -> StorageMeta:
        """For planners."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """DCP passes ``rank`` and ``use_collectives`` because a parameter is named kwargs. Raises ConfigError, and
        DaemonUnavailableError when no daemon answers: so no other rank waits for this one.
        """
        apart, saver = not kwargs.get("use_collectives", True), saver_of(self.job)
        self._apart = None
        if apart:
            rank = kwargs["rank"]
            self._apart = saver.seat_apart(token_of(self.step), rank, world_of(rank))
        self._seals_last = is_coordinator or apart
        saver.check()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Note what this rank has, before DCP takes away what others have, too."""
        saver = saver_of(self.job)
        if getattr(plan, "usable", True):  # older ones cache no plans
            saver.local_items = [item for item in plan.items if item.type != WriteItemType.SHARD]
        for item in plan.items:
            _check_item(item)
        return dataclasses.replace(plan, storage_data=(self.job, self.step, saver.token, saver.count))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each rank its place in this save. Raises ConfigError when they don't mean the same one.

        With use_collectives=False there is this rank's plan alone.
        """
        said = [plan.storage_data for plan in plans if plan.storage_data is not None]
        if len({data[:2] for data in said}) > 1:
            raise ConfigError(f"the ranks save different things: {sorted({named(*data[:2]) for data in said})}")
        worlds = {data[2:] for data in said}
        token, count = worlds.pop() if len(worlds) == 1 else ("", 0)
        token, count = (token, count + 1) if token else (secrets.token_hex(8), 1)
        lengths = {item.index.fqn: 1 << 40 for plan in plans for item in plan.items if item.type == WriteItemType.BYTE_IO}
        planned = [plan.planner_data for plan in plans]
        self._draft = Meta(lengths, dict(ChainMap(*planned)) if all(isinstance(data, dict) for data in planned) else planned)
        if self._apart is not None:
            return [dataclasses.replace(plan, storage_data=self._apart) for plan in plans]
        return [dataclasses.replace(plan, storage_data=Seat(token, count, rank, len(plans))) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Stage this rank's share. Raises SaveError and its kin, and what the planner raises; no other rank waits then."""
        saver, seat = saver_of(self.job), self._apart or plan.storage_data  # a plan from DCP's cache has an earlier save's
        if not isinstance(seat, Seat) or seat.apart != (self._apart is not None):
            raise SaveError("the planner lost what prepare_global_plan() gave it: its finish_plan() must keep storage_data")
        step = saver.enter(seat, self.step)
        try:
            share = _Share(seat, self._draft if self._seals_last else None)
            elsewhere = dict(misplaced(state_of(planner)))
            for item in plan.items:
                share.add(item, planner.resolve_data(item), elsewhere.get(item.index.fqn))
            if seat.size > 1 and not seat.apart:
                share.add_own(_missing(saver, plan), planner)
            found = share.collected()
            handle = saver.stage(step, found, share.pieces, hold=self._seals_last)
        except BaseException as error:
            saver.miss(f"{type(error).__name__}: {error}")
            raise
        if self._seals_last:
            self._open = handle, share, found
        future: Future[list[WriteResult]] = Future()
        future.set_result(share.results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, or on each rank with use_collectives=False: add what DCP knows of the whole, and wait until the
        checkpoint is durable. Raises SaveError.
        """
        if self._open is None:
            raise SaveError("finish() without write_data()")
        (handle, share, found), self._open = self._open, None
        saver = saver_of(self.job)
        lengths = {r.index.fqn: r.size_in_bytes for rank in results for r in rank if r.storage_data == "bytes"}
        try:
            found.bodies.update(share.described(Meta(lengths, metadata.planner_data)))
        except UnsupportedStateError as error:
            saver.miss(str(error))
            raise
        saver.commit(handle, found)
        metadata.storage_meta = StorageMeta(checkpoint_id=named(self.job, handle.step), save_id=self.save_id)

    # ---- as an AsyncStager

    @property
    def should_synchronize_after_execute(self) -> bool:
        """`stage` has copied everything when it returns."""
        return self._synchronize_after_execute

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """As `CkptdStager.stage`, with memory that all writers of this process share."""
        return _stager.stage(state_dict)

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """The memory stays for the next writer."""


def _check_item(item: WriteItem) -> None:
    if item.index.fqn.startswith("ckptd."):
        raise UnsupportedStateError(item.index.fqn, item.type.name, "names that begin with 'ckptd.' are ckptd's own")
    if item.tensor_data is not None:
        dtype_name(item.tensor_data.properties.dtype, item.index.fqn)


def _missing(saver: Saver, plan: SavePlan) -> list[WriteItem]:
    """What this rank has, and another one stores."""
    kept = {item.index.fqn for item in plan.items}
    return [item for item in saver.local_items if item.index.fqn not in kept]


class _Share:
    """What one rank stores."""

    def __init__(self, seat: Seat, draft: Meta | None) -> None:
        self.pieces: list[Piece] = []
        self.results: list[WriteResult] = []
        self._seat, self._draft = seat, draft
        self._parts: dict[str, tuple[list[int], list[list[int]]]] = {}
        self._tensors: list[torch.Tensor] = []
        self._bodies: dict[str, bytes] = {}

    def add(self, item: WriteItem, data: torch.Tensor | io.BytesIO, elsewhere: Misplaced | None) -> None:
        """``elsewhere`` is where it really lies, if the plan is wrong. Raises UnsupportedStateError, SaveError."""
        fqn = item.index.fqn
        if item.type == WriteItemType.BYTE_IO:
            assert not isinstance(data, torch.Tensor)
            body = data.getvalue()
            room = -(-max(len(body), 1) // _ROOM) * _ROOM
            tensor = torch.frombuffer(bytearray(body.ljust(room, b"\0")), dtype=torch.uint8)
            self._piece(fqn, tensor, (room,), (0,))
            self.results.append(WriteResult(item.index, len(body), "bytes"))
            return
        assert item.tensor_data is not None
        tensor = _dense(data, fqn)
        shape, chunk = tuple(item.tensor_data.size), item.tensor_data.chunk
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if elsewhere is not None:
            offsets, sizes = elsewhere.offsets, elsewhere.sizes
        if tuple(tensor.shape) != sizes:
            raise SaveError(f"DCP's plan has {sizes} of {fqn!r}, but the tensor is {tuple(tensor.shape)}")
        self._piece(fqn, tensor, shape, offsets)
        self.results.append(WriteResult(item.index, tensor.numel() * tensor.element_size(), "tensor"))

    def _piece(self, fqn: str, tensor: torch.Tensor, shape: tuple[int, ...], offsets: tuple[int, ...]) -> None:
        nbytes = tensor.numel() * tensor.element_size()
        dtype, sizes = dtype_name(tensor.dtype, fqn), tuple(tensor.shape)
        if self._seat.apart and sizes != shape:
            self._parts.setdefault(fqn, (list(shape), []))[1].append(list(offsets))
            fqn, shape, offsets = part_name(fqn, offsets), sizes, (0,) * len(sizes)
        if not nbytes and 0 not in shape:
            return  # an empty shard: others have what there is
        scope = "rank" if self._seat.apart else "global"
        self.pieces.append(Piece(fqn, scope, dtype, shape, offsets, sizes, nbytes, len(self._tensors)))
        self._tensors.append(tensor)

    def add_own(self, items: Sequence[WriteItem], planner: SavePlanner) -> None:
        """What differs from rank to rank under one name would be lost: small things are kept for each rank."""
        own: dict[str, Any] = {}
        left = OWN_BYTES
        for item in items:
            data_of = item.tensor_data
            if data_of is not None and data_of.chunk.sizes.numel() * data_of.properties.dtype.itemsize > OWN_ITEM_BYTES:
                continue
            data = planner.resolve_data(item)
            fqn = item.index.fqn
            if isinstance(data, torch.Tensor):
                dense = _dense(data, fqn).resolve_conj().resolve_neg().cpu().contiguous()
                body = bytes(dense.reshape(-1).view(torch.uint8).numpy().data) if dense.numel() else b""
                entry: Any = [dtype_name(dense.dtype, fqn), list(dense.shape), body]
            else:
                entry = body = data.getvalue()
            if len(body) <= OWN_ITEM_BYTES and left >= len(body):
                own[fqn] = entry
                left -= len(body)
        if own:
            self._bodies[OWN] = encode(own, OWN)

    def described(self, meta: Meta) -> dict[str, bytes]:
        """The objects that say what there is. Raises UnsupportedStateError."""
        if not self._seat.apart:
            return {META: meta.encode()}
        found = {RANK_META: dataclasses.replace(meta, parts=self._parts).encode()}
        return found if self._seat.rank else {META: Meta({}, {}, apart=True).encode(), **found}

    def collected(self) -> Collected:
        """For the stager. Its structure is equal for equal pieces. Raises UnsupportedStateError."""
        if self._draft is not None:
            self._bodies.update(self.described(self._draft))
        scopes = ((META, "global"), (OWN, "rank"), (RANK_META, "rank"))
        structure = Structure(objects=[(fqn, scope) for fqn, scope in scopes if fqn in self._bodies])
        structure.placed = [(piece.source, piece) for piece in self.pieces]
        for tensor in self._tensors:
            structure.devices.append(tensor.device)
        return Collected(structure, self._tensors, self._bodies)


def _dense(data: object, fqn: str) -> torch.Tensor:
    if not isinstance(data, torch.Tensor) or type(data) not in (torch.Tensor, torch.nn.Parameter):
        raise UnsupportedStateError(fqn, type(data).__qualname__, "DCP resolved it to something that is no plain tensor")
    if data.layout is not torch.strided or data.is_quantized or data.device.type == "meta":
        raise UnsupportedStateError(fqn, str(data.layout), f"only dense tensors can be stored device={data.device}")
    return data.detach()
