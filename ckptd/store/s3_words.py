"""The storage options of S3: the words of s3fs and boto that mean something to us.

Anything else is refused by name: what a user asked for and didn't get would be found out too late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ckptd.errors import StoreConfigError

_SECRETS = ("key", "secret", "token")
_TABLES = ("client_kwargs", "config_kwargs", "s3_additional_kwargs")
# By table of options; "" is the top.
_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"anon", "endpoint_url", *_SECRETS, "profile", "use_ssl", "requester_pays", *_TABLES}),
    "client_kwargs": frozenset(
        {
            "region_name",
            "endpoint_url",
            "use_ssl",
            "verify",
            "aws_access_key_id",
            "aws_secret_access_key",
            "aws_session_token",
        }
    ),
    "config_kwargs": frozenset(
        {"region_name", "connect_timeout", "read_timeout", "use_dualstack_endpoint", "use_fips_endpoint", "s3"}
    ),
    "config_kwargs.s3": frozenset({"addressing_style", "use_accelerate_endpoint", "use_dualstack_endpoint"}),
    "s3_additional_kwargs": frozenset({"ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled"}),
}


def tables_of(options: Mapping[str, object], shown: str) -> dict[str, Mapping[str, object]]:
    """The tables of ``_WORDS`` by name, empty where not given. Raises StoreConfigError for what isn't a word there."""
    tables: dict[str, Mapping[str, object]] = {}
    for path, words in _WORDS.items():
        parent, _, name = path.rpartition(".")
        table = tables[parent].get(name, {}) if path else options
        if not isinstance(table, Mapping):
            raise StoreConfigError(f"storage option {path!r} must be a table of options store={shown}")
        if unknown := sorted(str(word) for word in table if word not in words):
            place = f"in {path} " if path else ""
            raise StoreConfigError(
                f"S3 has no use for these storage options: {', '.join(unknown)}; allowed {place}are"
                f" {', '.join(sorted(words))}: store={shown}"
            )
        tables[path] = table
    return tables


def seconds_of(table: Mapping[str, object], name: str, default_seconds: float, shown: str) -> float:
    """A timeout. Raises StoreConfigError unless it is a positive number."""
    value = table.get(name, default_seconds)
    if not isinstance(value, (int, float)) or value <= 0:
        raise StoreConfigError(f"storage option config_kwargs.{name} must be a number of seconds: store={shown}")
    return float(value)
