"""Errors of the client and of everything it shares with the daemon.

    CkptdError
    ├── ConfigError              the user asked for something that can't be; change it and try again
    ├── UnsupportedStateError    a value in the state has no safe stored form (names its path and type)
    ├── ProtocolError            the peer sent bytes that don't parse, or a message out of turn
    │   └── VersionMismatchError client and daemon speak different protocol versions
    ├── DaemonUnavailableError   no daemon answers; training can go on, nothing is saved meanwhile
    ├── ResourceError            memory or space ran out (an arena that doesn't fit)
    ├── SaveError                a snapshot was given up; the handle's waiters get this
    └── RestoreError             a checkpoint could not be loaded on every rank
        └── MissingStateError    the checkpoint has no such entry, or with another shape or type

Messages say what happened, to what, and what to try; machine-readable details end them as ``key=value``.
"""

from __future__ import annotations


class CkptdError(Exception):
    """Base of every error that ckptd raises on purpose."""


class ConfigError(CkptdError):
    """A setting or an argument is not possible."""


class UnsupportedStateError(CkptdError):
    """A value in the state has no safe stored form."""

    def __init__(self, path: str, type_name: str, reason: str) -> None:
        super().__init__(f"can't store the value at {path!r}: {reason} type={type_name}")
        self.path = path
        self.type_name = type_name
        self._reason = reason

    def __reduce__(self) -> tuple[type[UnsupportedStateError], tuple[str, str, str]]:
        # DCP pickles errors to tell all ranks; by default it would be made of its message alone, which breaks the collective.
        return type(self), (self.path, self.type_name, self._reason)


class ProtocolError(CkptdError):
    """The peer sent something that is not of the protocol."""


class VersionMismatchError(ProtocolError):
    """Client and daemon speak different protocol versions."""


class DaemonUnavailableError(CkptdError):
    """No daemon answers on the socket."""


class ResourceError(CkptdError):
    """Memory or space ran out."""


class SaveError(CkptdError):
    """A snapshot was given up before it became durable."""


class RestoreError(CkptdError):
    """A checkpoint could not be loaded on every rank."""


class MissingStateError(RestoreError):
    """The checkpoint lacks an entry that was asked for, or has it with another shape or dtype."""
