"""Identities (PROTOCOLS 1): what a name means must not depend on a clock or on a step number alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ckptd.errors import ConfigError, CorruptError

_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_GENERATION = re.compile(r"(\d{1,10})-(\d{1,10})")
_SNAPSHOT = re.compile(r"(\d{1,10})-(\d{1,10})\.(\d{1,15})")
_ATTEMPT = re.compile(r"(\d{1,10})-(\d{1,10})\.(\d{1,15})\.(\d{1,6})")


def check_job(job: str) -> str:
    """Return ``job`` if it is a valid job id, else raise ConfigError."""
    if not _JOB.fullmatch(job):
        raise ConfigError(f"a job id has 1 to 64 letters, digits, '_' and '-'; got {job!r}")
    return job


@dataclass(frozen=True, order=True, slots=True)
class Generation:
    """One formed world of workers, compared by (epoch, n). (0, 0) means: none yet."""

    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"

    def __bool__(self) -> bool:
        return self != NO_GENERATION

    @classmethod
    def parse(cls, text: str) -> Generation:
        """Read the text form; raises CorruptError."""
        found = _GENERATION.fullmatch(text)
        generation = cls(*(int(part) for part in found.groups())) if found else None
        if generation is None or str(generation) != text:
            raise CorruptError(f"not a generation: {text[:80]!r}")
        return generation


NO_GENERATION = Generation(0, 0)


@dataclass(frozen=True, order=True, slots=True)
class Snapshot:
    """The staged state of all ranks after ``step`` completed steps of one generation."""

    generation: Generation
    step: int

    def __str__(self) -> str:
        return f"{self.generation}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the text form; raises CorruptError."""
        found = _SNAPSHOT.fullmatch(text)
        epoch, n, step = (int(part) for part in found.groups()) if found else (0, 0, 0)
        snapshot = cls(Generation(epoch, n), step)
        if found is None or str(snapshot) != text:
            raise CorruptError(f"not a snapshot: {text[:80]!r}")
        return snapshot


@dataclass(frozen=True, order=True, slots=True)
class Attempt:
    """One try at making one snapshot durable. Text form ``epoch-n.step.try``, used in object keys."""

    snapshot: Snapshot
    number: int

    def __str__(self) -> str:
        return f"{self.snapshot}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Attempt:
        """Read the text form; raises CorruptError."""
        found = _ATTEMPT.fullmatch(text)
        if not found:
            raise CorruptError(f"not an attempt id: {text[:80]!r}")
        epoch, n, step, number = (int(part) for part in found.groups())
        attempt = cls(Snapshot(Generation(epoch, n), step), number)
        if str(attempt) != text:
            raise CorruptError(f"not the canonical form of an attempt id: {text[:80]!r}")
        return attempt
