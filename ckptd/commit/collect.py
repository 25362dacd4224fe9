"""What nobody can need any more (PROTOCOLS 4.7), as a plan: a value that can be printed, tested and refused. See ``sweep``.

Why no restore and no commit ever loses an object, however late a collector acts on what it knew:

- What ``since`` says of a log stays true of every longer log. A retired commit can't become live, be pinned or become a base
  again; an aborted attempt can't be committed; a generation that another one's commit has followed gets no more commits, and
  no layout is shared between generations; the folded state before record s is read only by who takes s for the tail, and such a
  reader looks again when s + 1 is there. So a collector that was stopped for a day deletes what is deleted already.
- Readers pin what they read while it is live, and whatever is pinned is kept.

Listings say where to look and never what may go: what they miss, a later plan finds. Grace is a courtesy to those who read
without a pin and to uploads that are on their way: the store's clock against its own Last-Modified, never ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from ckptd.commit.catalog import Status, catalog
from ckptd.commit.fold import collectable
from ckptd.commit.state import State
from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.canonical import is_hash
from ckptd.model.ids import Attempt, Generation
from ckptd.model.keys import (
    attempts_prefix,
    clock_key,
    data_prefix,
    layout_prefix,
    layouts_prefix,
    log_key,
    manifest_key,
    manifest_prefix,
    seq_of_state,
    state_prefix,
)
from ckptd.model.manifest import MAX_MANIFEST_BYTES, decode_manifest
from ckptd.store.base import ObjectInfo, Store, get_small
from ckptd.store.keys import is_key

T = TypeVar("T")

KEEP_STATES: Final = 64
MAX_STRAYS: Final = 100  # manifests that one plan reads to learn whose they are


class Kind(StrEnum):
    """Sorts of things that may go."""

    COMMIT = "checkpoint"
    ATTEMPT = "attempt"
    STRAY = "manifest of no checkpoint"
    LAYOUT = "layouts"
    STATE = "folded states"


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in the store. ``seq`` is a commit's number, or that of the last of some states' records."""

    kind: Kind
    seq: int = 0
    attempt: Attempt | None = None
    generation: Generation | None = None
    manifest: str = ""

    def __str__(self) -> str:
        match self.kind:
            case Kind.COMMIT if self.attempt is not None:
                return f"checkpoint of step {self.attempt.snapshot.step}, record {self.seq}"
            case Kind.LAYOUT:
                return f"layouts of generation {self.generation}"
            case Kind.STATE:
                return f"folded states up to record {self.seq}"
        return f"{self.kind.value} {self.attempt}"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing of a plan. ``objects`` are in the order of their deletion; the times are the store's, seconds since 1970."""

    thing: Thing
    why: str
    since_seconds: float
    due_seconds: float
    objects: tuple[ObjectInfo, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its objects."""
        return sum(info.size_bytes for info in self.objects)


@dataclass(frozen=True, slots=True)
class Plan:
    """``due`` may be deleted now, ``waiting`` when its time comes. ``unsettled``: attempts with data and without a COMMIT or
    ABORT, which nobody may delete. ``held``: retired or quarantined checkpoints that must stay, and why. ``more``: there is
    more that is due than this plan has room for.
    """

    now_seconds: float
    due: tuple[Item, ...]
    waiting: tuple[Item, ...]
    unsettled: tuple[Attempt, ...]
    more: bool
    held: tuple[tuple[Thing, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Present:
    """What listings found in the store. ``strays``: whose attempts the manifests are that no commit names."""

    attempts: frozenset[Attempt] = frozenset()
    manifests: frozenset[str] = frozenset()
    strays: tuple[tuple[str, Attempt], ...] = ()
    layouts: frozenset[Generation] = frozenset()
    states: tuple[tuple[int, ObjectInfo], ...] = ()


def since(state: State, thing: Thing) -> int | None:
    """The log record since which ``thing`` may go; None when it may not. Pure; once a number, a number for ever (I6)."""
    if thing.kind is Kind.STATE:
        return thing.seq if thing.seq <= state.tail - KEEP_STATES else None
    if thing.kind is Kind.STRAY:
        # An attempt is settled once. Its other manifests, of another office or from other parts, will never be named.
        if thing.attempt is None or any(entry.manifest == thing.manifest for entry in state.commits.values()):
            return None
        committed = state.committed.get(thing.attempt)
        return collectable(state).attempt(thing.attempt) if committed is None else committed
    may_go = collectable(state)
    if thing.generation is not None:
        return may_go.layouts(thing.generation)
    if thing.attempt is None:
        return None
    return may_go.commit(thing.seq, thing.attempt) if thing.kind is Kind.COMMIT else may_go.attempt(thing.attempt)


def deletable(state: State, present: Present) -> Iterator[tuple[Thing, int, str]]:
    """What may go of what is there, each with the record since which it may, and why. Pure. Without folded states."""
    may_go = collectable(state)
    for entry in state.commits.values():
        at = may_go.commit(entry.n, entry.attempt)
        if at is not None and (entry.attempt in present.attempts or entry.manifest in present.manifests):
            how = "retired" if entry.retired_at is not None else "quarantined"
            yield Thing(Kind.COMMIT, entry.n, entry.attempt, manifest=entry.manifest), at, f"{how} by record {at}"
    for attempt in sorted(present.attempts - state.committed.keys()):
        at = may_go.attempt(attempt)
        if at is not None:
            how = "aborted" if attempt in state.aborted else "left behind, and passed"
            yield Thing(Kind.ATTEMPT, attempt=attempt), at, f"{how} by record {at}"
    for manifest, attempt in present.strays:
        thing = Thing(Kind.STRAY, attempt=attempt, manifest=manifest)
        settled = since(state, thing)
        if settled is not None:
            yield thing, settled, f"its attempt was settled otherwise by record {settled}"
    for generation in sorted(present.layouts):
        at = may_go.layouts(generation)
        if at is not None:
            yield Thing(Kind.LAYOUT, generation=generation), at, "its generation has ended and its checkpoints are gone"


def held(state: State) -> Iterator[tuple[Thing, str]]:
    """The checkpoints that ended and whose data must stay, and why. Pure."""
    for one in catalog(state):
        reasons = [f"pinned by {', '.join(one.pins)}"] if one.pins else []
        reasons += [f"record {n} refers to its data" for n in one.base_of[-1:]]
        if one.status is not Status.LIVE and reasons:
            yield Thing(Kind.COMMIT, one.seq, one.attempt, manifest=one.manifest), " and ".join(reasons)


async def make_plan(
    store: Store,
    job: str,
    state: State,
    grace_seconds: float,
    known: MutableMapping[int, float],
    max_objects: int | None = None,
) -> Plan:
    """What may go by ``state``, with what it takes. Reads and lists; writes nothing but CLOCK, to learn the store's time.

    ``known`` remembers records' Last-Modified from plan to plan, as long as they matter. With ``max_objects`` a plan ends when
    it has so many, and the objects of what has to wait are not listed. Raises what the store raises.
    """
    present = await _look(store, job, state)
    now = await store_time(store, job)
    due: list[Item] = []
    waiting: list[Item] = []
    taken = 0
    asked: set[int] = set()
    for thing, at, why in deletable(state, present):
        if max_objects is not None and taken >= max_objects:
            break
        asked.add(at)
        if at not in known:
            known[at] = (await store.info(log_key(job, at))).modified_seconds
        when = known[at] + grace_seconds
        wanted = when <= now or max_objects is None
        objects = await _objects(store, job, thing) if wanted else ()
        if wanted and not objects:
            continue  # nothing but an empty directory, or what isn't ours
        taken += len(objects)
        (due if when <= now else waiting).append(Item(thing, why, known[at], when, objects))
    else:
        for forgotten in known.keys() - asked:  # what they ended is gone
            del known[forgotten]
    for item in _states(state, present, grace_seconds, now):
        (due if item.due_seconds <= now else waiting).append(item)
    unknown = present.attempts - state.committed.keys() - state.aborted.keys()
    unsettled = tuple(sorted(attempt for attempt in unknown if not state.forgets(attempt)))
    more = max_objects is not None and taken >= max_objects
    return Plan(now, tuple(due), tuple(waiting), unsettled, more, tuple(held(state)))


async def store_time(store: Store, job: str) -> float:
    """What time it is by the store's own clock: seconds since 1970. Writes one byte. Raises what the store raises."""
    await store.put(clock_key(job), b"0")
    return (await store.info(clock_key(job))).modified_seconds


def _states(state: State, present: Present, grace_seconds: float, now: float) -> Iterator[Item]:
    why = f"more than {KEEP_STATES} records have followed"
    old = sorted(found for found in present.states if found[0] <= state.tail - KEEP_STATES)
    young = [info.modified_seconds + grace_seconds > now for _, info in old]
    for waits in (False, True):
        chosen = [found for found, is_young in zip(old, young, strict=True) if is_young is waits]
        if chosen:
            modified = max(info.modified_seconds for _, info in chosen)
            objects = tuple(info for _, info in chosen)
            yield Item(Thing(Kind.STATE, chosen[-1][0]), why, modified, modified + grace_seconds, objects)


async def _look(store: Store, job: str, state: State) -> Present:
    """List what is there, as much as there are checkpoints, and not as much as there are objects."""
    prefix = manifest_prefix(job)
    manifests = {info.key.removeprefix(prefix) async for info in store.list(prefix)}
    unnamed = sorted(filter(is_hash, manifests - {entry.manifest for entry in state.commits.values()}))
    strays = [(name, attempt) for name in unnamed[:MAX_STRAYS] if (attempt := await _whose(store, job, name)) is not None]
    states = []
    async for info in store.list(state_prefix(job)):
        seq = seq_of_state(info.key.removeprefix(state_prefix(job)))
        if seq is not None:
            states.append((seq, info))
    return Present(
        attempts=frozenset(_parsed(Attempt.parse, await store.children(attempts_prefix(job)))),
        manifests=frozenset(manifests),
        strays=tuple(strays),
        layouts=frozenset(_parsed(Generation.parse, await store.children(layouts_prefix(job)))),
        states=tuple(states),
    )


def _parsed(parse: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """What isn't ours is left alone."""
    for name in names:
        try:
            yield parse(name)
        except CorruptError:
            continue


async def _whose(store: Store, job: str, manifest: str) -> Attempt | None:
    try:
        return decode_manifest(await get_small(store, manifest_key(job, manifest), MAX_MANIFEST_BYTES)).attempt
    except (NotFoundError, CorruptError):
        return None


async def _objects(store: Store, job: str, thing: Thing) -> tuple[ObjectInfo, ...]:
    """All objects of ``thing`` that are there, data before the manifest: half of it deleted, the rest is found again."""
    found: list[ObjectInfo] = []
    if thing.attempt is not None and thing.kind is not Kind.STRAY:
        found += sorted([info async for info in store.list(data_prefix(job, thing.attempt))], key=lambda info: info.key)
    if thing.generation is not None:
        found += [info async for info in store.list(layout_prefix(job, thing.generation))]
    if thing.manifest:
        try:
            found.append(await store.info(manifest_key(job, thing.manifest)))
        except NotFoundError:
            pass
    return tuple(info for info in found if is_key(info.key))
