"""Errors of the daemon, the coordinator and the tools.

CkptdError (from the client: ConfigError, ProtocolError, ResourceError, RestoreError, …)
├── StoreError               the object store refused or failed
│   ├── NotFoundError        no such key
│   ├── AlreadyExistsError   a create found the key taken
│   ├── UnavailableError     may work when tried again (timeout, 5xx, 409, connection lost)
│   ├── StoreConfigError     will not work until somebody changes URL, bucket or credentials
│   └── UnsafeStoreError     the store overwrites where it must refuse; no log can live there
├── CorruptError             stored bytes do not parse or do not match their digest
│   └── NewerFormatError     they may be sound, but a newer ckptd is needed to read them
├── InterchangeError         a file of another format can't be imported, or a state can't be exported as one
├── LogTruncatedError        a record of the commit log is missing below its tail
├── OfficeLostError          a later EPOCH stands in the log; this coordinator must step down
└── JobInUseError            another coordinator is alive under this job id
"""

from __future__ import annotations

from ckptd_client.errors import (
    CkptdError,
    ConfigError,
    MissingStateError,
    ProtocolError,
    ResourceError,
    RestoreError,
    VersionMismatchError,
)

__all__ = [
    "AlreadyExistsError",
    "CkptdError",
    "ConfigError",
    "CorruptError",
    "InterchangeError",
    "JobInUseError",
    "LogTruncatedError",
    "MissingStateError",
    "NewerFormatError",
    "NotFoundError",
    "OfficeLostError",
    "ProtocolError",
    "ResourceError",
    "RestoreError",
    "StoreConfigError",
    "StoreError",
    "UnavailableError",
    "UnsafeStoreError",
    "VersionMismatchError",
]


class StoreError(CkptdError):
    """The object store refused or failed."""


class NotFoundError(StoreError):
    """No object has this key."""


class AlreadyExistsError(StoreError):
    """A create found an object under this key."""


class UnavailableError(StoreError):
    """The store did not do it this time; the same call may work later."""


class StoreConfigError(StoreError):
    """URL, bucket or credentials are wrong; trying again won't help."""


class UnsafeStoreError(StoreError):
    """The store overwrites an object where it must refuse to."""


class CorruptError(CkptdError):
    """Stored bytes do not parse, or do not match their digest."""


class NewerFormatError(CorruptError):
    """Stored bytes are of a format that this ckptd is too old for; nothing is known to be wrong with them."""


class InterchangeError(CkptdError):
    """A file of another format is damaged, or of a kind that can't be imported; or a state has no form in that format."""


class LogTruncatedError(CkptdError):
    """The commit log misses a record below its tail."""


class OfficeLostError(CkptdError):
    """A later EPOCH stands in the log: another coordinator holds the office."""


class JobInUseError(CkptdError):
    """Another coordinator is alive under this job id."""
