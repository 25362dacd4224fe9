"""Which commit does somebody mean? A step, or the number of its record where a step came again."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable
from socket import gethostname
from typing import Annotated

import typer

from ckptd.commit.state import Entry
from ckptd.coordinator.restoring import epoch_of_holder
from ckptd.errors import ConfigError
from ckptd.model.records import is_who

Step = Annotated[int | None, typer.Argument(help="step of the checkpoint, as `ckptd ls` shows it", min=0)]
Seq = Annotated[int | None, typer.Option("--seq", help="instead: number of its record, where a step has come again", min=0)]
Who = Annotated[str | None, typer.Option(help="whose pin it is; default: you, on this machine")]


def check_choice(step: int | None, seq: int | None) -> None:
    """Raises ConfigError unless exactly one of them is given."""
    if (step is None) == (seq is None):
        raise ConfigError("name one checkpoint: by its step, or with --seq by the number of its record (see `ckptd ls`)")


def choose(entries: Iterable[Entry], step: int | None, seq: int | None, kind: str) -> Entry:
    """The one that is meant among ``entries``, which are ``kind`` ("live", …). Raises ConfigError when it isn't one."""
    found = [entry for entry in entries if (entry.n == seq if step is None else entry.attempt.snapshot.step == step)]
    meant = f"record {seq}" if step is None else f"step {step}"
    if not found:
        raise ConfigError(f"{meant} is no {kind} checkpoint of this job; see `ckptd ls`")
    if len(found) > 1:
        them = ", ".join(f"record {entry.n} of generation {entry.generation}" for entry in found[:20])
        raise ConfigError(f"{meant} was reached more than once; say which with --seq: {them}")
    return found[0]


def holder(who: str | None) -> str:
    """In whose name to pin. Raises ConfigError for a name that can't be, or that is kept for restores."""
    if who is None:
        who = re.sub(r"[^A-Za-z0-9._:@-]", "-", f"{getpass.getuser()}@{gethostname()}")[:128]
    if not is_who(who):
        raise ConfigError(
            f"a pin's name has 1 to 128 letters, digits and . _ : @ -, a letter or digit first; got {who[:140]!r}"
        )
    if epoch_of_holder(who) is not None:
        raise ConfigError(
            f"names like this are of the coordinator's own pins, which it ends by itself; choose another one: {who}"
        )
    return who


def named(entry: Entry) -> str:
    """In words."""
    return f"record {entry.n} (step {entry.attempt.snapshot.step})"
