"""Several coordinators on one log, under seeded faults and schedules: the log's final bytes against what everybody was told."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from ckptd.commit.fold import fold, restore_candidate
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, pin, take_office, unpin
from ckptd.commit.patience import Patience
from ckptd.commit.state import EMPTY
from ckptd.errors import CorruptError, OfficeLostError, UnavailableError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Office, Retire, decode
from tests.clock import FakeClock
from tests.commit import histories, oracle
from tests.commit.faulty_store import FaultyStore

JOB = "job"
ATTEMPTS = [Attempt(Snapshot(Generation(1, 1), step), 0) for step in range(5)]
SCHEDULES = 200


@dataclass
class Told:
    """What the store's users were told: (record number, body as it must stand there), and attempts that they were denied."""

    yes: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    no: list[tuple[Office, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


class Actor:
    """A coordinator that takes office, works, is deposed, is left in doubt, and starts over."""

    def __init__(self, store: FaultyStore, clock: FakeClock, rng: random.Random, told: Told, name: str) -> None:
        patience = Patience(deadline_seconds=rng.choice((0.0, 2.0, 20.0)), clock=clock, chance=rng)
        self.log = CommitLog(store, JOB, patience, nonce=lambda: f"{rng.getrandbits(128):032x}")
        self.rng, self.told, self.name = rng, told, name
        self.doubtful: set[str] = set()

    async def live(self) -> None:
        for _ in range(3):
            try:
                office = await take_office(self.log)
            except (UnavailableError, OfficeLostError) as error:
                self.told.outcomes[f"office {type(error).__name__}"] += 1
                continue
            self.told.outcomes["office taken"] += 1
            try:
                for _ in range(self.rng.randrange(2, 9)):
                    await self._pause()
                    await self._work(office)
            except OfficeLostError:
                self.told.outcomes["deposed"] += 1

    async def _pause(self) -> None:
        for _ in range(self.rng.randrange(60)):
            await asyncio.sleep(0)

    async def _work(self, office: Office) -> None:
        kind = self.rng.choice(("commit", "commit", "commit", "abort", "retire", "quarantine", "pin", "unpin", "forget"))
        attempt = self.rng.choice(ATTEMPTS)
        try:
            await self._one(kind, office, attempt)
            self.told.outcomes[kind] += 1
        except UnavailableError as error:
            self.doubtful.add(str(attempt))
            self.told.outcomes["in doubt" if "unknown" in str(error) else "unavailable"] += 1
        except (RecordRefusedError, OfficeLostError) as error:
            self.told.outcomes[type(error).__name__] += 1
            if kind == "commit" and str(attempt) not in self.doubtful:
                self.told.no.append((office, str(attempt)))
            if isinstance(error, OfficeLostError):
                raise

    async def _one(self, kind: str, office: Office, attempt: Attempt) -> None:
        committer, yes = Committer(self.log, office), self.told.yes
        commits = list(self.log.state.commits)
        n = self.rng.choice(commits) if commits else 0
        if kind == "commit":
            bases = [n] if commits and self.rng.random() < 0.5 else []
            manifest = f"{self.rng.getrandbits(256):064x}"
            seq = await committer.commit(attempt, manifest, bases)
            yes.append((seq, {"type": "COMMIT", "attempt": str(attempt), "manifest": manifest, "bases": bases}))
        elif kind == "abort":
            yes.append((await committer.abort(attempt), {"type": "ABORT", "attempt": str(attempt)}))
        elif kind == "quarantine" and self.rng.random() < 0.3:
            yes.append((await committer.quarantine(n, "bad\nchecksum"), {"type": "QUARANTINE", "n": n}))
        elif kind == "retire":
            yes.append((await self._retire(n, office), {"type": "RETIRE", "n": n}))
        elif kind == "forget":
            await committer.forget(attempt.snapshot)
        elif kind == "pin":
            await pin(self.log, n, self.name)
        elif kind == "unpin":
            await unpin(self.log, n, self.name)

    async def _retire(self, n: int, office: Office) -> int:
        seq = await self.log.append(lambda _: Retire(n), office)
        assert seq is not None
        return seq


async def run_schedule(seed: int, faults: float) -> tuple[FaultyStore, Told]:
    rng = random.Random(seed)
    store, clock, told = FaultyStore(random.Random(rng.random()), faults), FakeClock(), Told()
    actors = [Actor(store, clock, random.Random(rng.random()), told, f"actor{i}") for i in range(3)]
    lives = [asyncio.create_task(actor.live()) for actor in actors]
    try:
        await asyncio.gather(*lives)
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
    await store.close()
    return store, told


def check(store: FaultyStore, told: Told) -> list[str]:
    """What is wrong with the final log, in the oracle's eyes."""
    keys = [key for key, _ in store.created]
    found = [f"I1: {key} was created twice" for key, times in Counter(keys).items() if times > 1]
    bodies = [store.objects[key] for key in sorted(keys)]
    if sorted(keys) != [f"{JOB}/log/{i:020d}" for i in range(len(keys))]:
        found.append("I1: the log has gaps")
    log = [json.loads(data) for data in bodies]
    expected = oracle.rules(log)
    for seq, body in told.yes:
        if not _says(log[seq]["body"], body):
            found.append(f"I4: told that record {seq} is {body}, but it is {log[seq]['body']}")
        if not expected[seq]:
            found.append(f"I4: told that void record {seq} counts")
    for office, attempt in told.no:
        for raw, counts in zip(log, expected, strict=True):
            ours = counts and raw["office"] == [office.epoch, office.nonce] and raw["body"]["type"] == "COMMIT"
            if ours and raw["body"]["attempt"] == attempt and not _acked(told, raw):
                found.append(f"I4: told that {attempt} isn't committed by {office}, but it is")
    state, deletable, counted = EMPTY, [], []
    commits: dict[int, Attempt] = {}
    for seq, data in enumerate(bodies):
        state, verdict = fold(state, decode(seq, data))
        counted.append(verdict.counted)
        commits |= {n: entry.attempt for n, entry in state.commits.items()}
        deletable.append(histories.told(state, commits, ATTEMPTS))
    found += oracle.violations(log, counted, deletable)
    found += [f"record {i} counts differently" for i in range(len(log)) if counted[i] != expected[i]]
    found += [f"void record {i} was written" for i in range(len(log)) if not expected[i]]
    newest = restore_candidate(state)
    if (newest.n if newest else None) != oracle.newest(log, expected, len(log)):
        found.append("another restore candidate")
    return found


def _says(stands: dict[str, Any], told: dict[str, Any]) -> bool:
    return all(stands.get(key) == value for key, value in told.items())


def _acked(told: Told, raw: dict[str, Any]) -> bool:
    return any(seq == raw["seq"] for seq, _ in told.yes)


@pytest.mark.parametrize("faults", [0.0, 0.1, 0.4])
async def test_nobody_is_told_what_isnt_so(faults: float) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        store, told = await run_schedule(seed, faults)
        found = check(store, told)
        assert not found, f"seed={seed} faults={faults}: {found}"
        outcomes += told.outcomes
        store.faults = 0.0
        log = CommitLog(store, JOB)
        state = await log.load()
        assert state.tail == len(store.created) - 1
    wanted = {"office taken", "deposed", "commit", "abort", "retire", "quarantine", "forget"}
    wanted |= {"RecordRefusedError", "OfficeLostError"}
    if faults:
        wanted |= {"in doubt", "unavailable"}
    assert wanted <= outcomes.keys(), outcomes


async def test_the_same_seed_gives_the_same_log() -> None:
    first, _ = await run_schedule(7, 0.3)
    second, _ = await run_schedule(7, 0.3)
    assert first.created == second.created


class OverwritingStore(FaultyStore):
    """A store that the probe must refuse (PROTOCOLS 4.1): its create overwrites."""

    async def create(self, key: str, data: bytes | bytearray | memoryview) -> None:
        content = bytes(data)

        def land() -> None:
            self.objects[key] = content
            self.created.append((key, content))

        await self._do(land)


async def test_a_store_that_overwrites_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe refuses such a store at the start; if one slips through, the chain breaks before anybody commits on it."""
    monkeypatch.setattr("tests.commit.test_races.FaultyStore", OverwritingStore)
    with pytest.raises(CorruptError, match="chain is broken"):
        await run_schedule(1, 0.0)


async def test_the_check_catches_a_writer_that_takes_a_timeout_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A false 'not committed': the lost reply is reported as an outcome."""

    async def create(self: CommitLog, seq: int, data: bytes) -> bytes:
        try:
            await self._store.create(f"{JOB}/log/{seq:020d}", data)
            return data
        except UnavailableError as error:
            raise OfficeLostError("guessed") from error

    monkeypatch.setattr(CommitLog, "_create_or_read", create)
    for seed in range(200):
        try:
            store, told = await run_schedule(seed, 0.2)
        except Exception:  # an AlreadyExistsError that nobody reads back
            continue
        if any("isn't committed" in found for found in check(store, told)):
            return
    pytest.fail("not caught")
