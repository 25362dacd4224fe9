"""Which tensors are copied behind forward and backward: those that are only written by registered optimizers.

That is not believed but watched. In the first steps of a training, before anything is hidden, every candidate is looked at
between the end of `step` and the beginning of the next optimizer step; who is written there (an average of weights kept by the
loop, clamped weights, an optimizer of somebody else) is copied in `step` from then on. Who turns out later to be written there
costs the snapshot that was under way, and is known, too. See docs/decisions/0009.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ckptd_client import devices
from ckptd_client.arena import Arena
from ckptd_client.behind import Behind, Marks, Samples
from ckptd_client.capture import Plan
from ckptd_client.copying import Copying
from ckptd_client.moving import in_a_row
from ckptd_client.regions import local_of
from ckptd_client.structure import Structure, address
from ckptd_client.tree import Collected

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("ckptd")
HIDE_BYTES_MIN: Final = 64 << 10  # of a tensor; smaller ones are copied as fast as they are looked after
GAPS: Final = 2  # to be watched before anything is hidden
LOSSES_MAX: Final = 3  # snapshots lost to unforeseen writes, after which nothing is hidden any more


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The pieces of a plan to be hidden, by their numbers: in ordinary memory, and on CUDA devices."""

    plan: Plan
    pinned: bool
    host: list[int]
    cuda: list[int]
    samples: Samples
    cuda_samples: Samples


class Hidden:
    """Used by the thread that trains. ``before_write`` is called when a registered optimizer is about to write."""

    def __init__(self, before_write: Callable[[], None]) -> None:
        self._before_write = before_write
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._hooks: list[Any] = []
        self._structure: Structure | None = None
        self._candidates: list[str] = []
        self._samples: Samples | None = None
        self._marks: Marks | None = None
        self._gaps = 0
        self._losses = 0
        self._exposed: set[str] = set()  # FQNs that were written by others than the optimizers
        self._chosen: _Chosen | None = None

    def attach(self, name: str, thing: object) -> None:
        """Know a registered part; only optimizers matter."""
        import torch

        if isinstance(thing, torch.optim.Optimizer) and hasattr(thing, "_optimizer_step_pre_hooks"):
            self._hooks.append(thing.register_step_pre_hook(lambda *_: self._before_step()))
            self._optimizers[name] = thing

    def detach(self) -> None:
        """Let the optimizers go."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._optimizers.clear()
        self._marks = None

    def _before_step(self) -> None:
        if devices.capturing():
            return  # what is recorded will write unseen: `watch` finds out
        self.end_gap()
        self._before_write()

    # ---- watching

    @property
    def curious(self) -> bool:
        """Whether `watch` should be called at the end of this step."""
        return bool(self._optimizers) and self._gaps < GAPS and self._losses < LOSSES_MAX

    def watch(self, found: Collected) -> None:
        """The state at the end of a step, to be compared with what it is when the next optimizer step begins."""
        if found.structure is not self._structure:
            self._structure, self._gaps, self._chosen = found.structure, 0, None
            self._candidates = list(self._owned(found))
            self._samples = Samples(self._tensors(found))
        assert self._samples is not None
        self._marks = Marks(self._tensors(found), self._samples)

    def _owned(self, found: Collected) -> Iterable[str]:
        """FQNs of the optimizers' parameters and state that are worth hiding."""
        parameters = {
            address(parameter)
            for optimizer in self._optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        parts = tuple(f"{name}." for name in self._optimizers)
        for fqn, index in found.structure.names.items():
            tensor = found.tensors[index]
            if (fqn.startswith(parts) or address(tensor) in parameters) and can_hide(local_of(tensor)):
                yield fqn

    def _tensors(self, found: Collected) -> list[torch.Tensor]:
        return [local_of(found.tensors[found.structure.names[fqn]]) for fqn in self._candidates]

    def end_gap(self) -> None:
        """The optimizer is about to write, or it has not written at all in this step."""
        marks, self._marks = self._marks, None
        if marks is not None:
            self._gaps += 1
            self._expose(self._candidates[at] for at in marks.written())

    def _expose(self, names: Iterable[str]) -> None:
        self._exposed.update(names)
        self._chosen = None

    def lost(self, names: Iterable[str]) -> None:
        """A snapshot is lost because these were written while they were copied."""
        self._losses += 1
        self._expose(names)
        if self._losses == LOSSES_MAX:
            _log.warning(
                "ckptd: %d snapshots were lost to writes outside the optimizers; nothing is hidden any more", LOSSES_MAX
            )

    # ---- choosing

    def places(self, plan: Plan, found: Collected, arena: Arena) -> list[int]:
        """Which of the plan's pieces to copy behind the training; on CUDA devices none, unless the arena is pinned."""
        if plan.structure is not self._structure and plan.structure != self._structure:
            self._gaps = 0
        if self._gaps < GAPS or self._losses >= LOSSES_MAX:
            return []
        pinned = arena.pinned is not None
        if self._chosen is None or self._chosen.plan is not plan or self._chosen.pinned != pinned:
            self._chosen = self._choose(plan, found, pinned)
        places = [*self._chosen.host, *self._chosen.cuda]
        # Strides are no part of the structure: whose have changed are rare, and copied as they used to be.
        return places if all(map(can_hide, plan.sources(found, places))) else []

    def _choose(self, plan: Plan, found: Collected, pinned: bool) -> _Chosen:
        names = set(self._candidates) - self._exposed
        wanted = [at for at, piece in enumerate(plan.pieces) if piece.fqn in names]
        wanted = [at for at in wanted if plan.pieces[at].nbytes >= HIDE_BYTES_MIN]
        sources = plan.sources(found, wanted)
        host = [at for at, source in zip(wanted, sources, strict=True) if source.is_cpu]
        cuda = [at for at, source in zip(wanted, sources, strict=True) if source.is_cuda and pinned]
        return _Chosen(plan, pinned, host, cuda, Samples(plan.sources(found, host)), Samples(plan.sources(found, cuda)))

    def start(self, plan: Plan, found: Collected, arena: Arena, slot: int, outgoing: devices.Outgoing | None) -> Copying:
        """Begin to copy what `places` has just named."""
        assert self._chosen is not None
        host, cuda = self._chosen.host, self._chosen.cuda
        if cuda and outgoing is not None:
            outgoing.later(plan.spans(cuda), plan.sources(found, cuda), self._chosen.cuda_samples)
        if not host:
            return Copying(None, outgoing, 0)
        destinations = plan.destinations(arena, slot)
        behind = Behind([destinations[at] for at in host], plan.sources(found, host), self._chosen.samples)
        return Copying(behind, outgoing, len(host))


def can_hide(local: torch.Tensor) -> bool:
    """Whether its bytes lie in a row as they are to be stored, in ordinary memory or a CUDA device's, and are many enough."""
    return (local.is_cuda or local.is_cpu) and in_a_row(local) and local.nbytes >= HIDE_BYTES_MIN
