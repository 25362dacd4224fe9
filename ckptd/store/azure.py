"""Azure Blob Storage: obstore's own words where adlfs has the same ones, and its own way to credentials.

What the options don't say, obstore takes from the environment, as Azure's tools do: AZURE_STORAGE_ACCOUNT_NAME, _KEY or
_SAS_TOKEN, AZURE_CLIENT_ID and the like, a workload's federated token, and at last the machine's managed identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from obstore.exceptions import BaseError
from obstore.store import AzureStore

from ckptd.errors import StoreConfigError
from ckptd.store.answers import CONTAINER_NAME
from ckptd.store.obstore_store import CONNECT_TIMEOUT_SECONDS, NO_RETRIES, READ_TIMEOUT_SECONDS, ObstoreStore, Place

# By option that holds a secret: what obstore is told to use, lest the environment has something that it prefers.
_KINDS: Final = {"account_key": "access_key", "sas_token": "sas_token", "client_secret": "client_secret"}
_WORDS: Final = frozenset({"account_name", *_KINDS, "tenant_id", "client_id", "credential_type", "endpoint", "anon"})
_CONTAINER = re.compile(r"[a-z0-9-]{3,63}")
# account.dfs.core.windows.net: the same account's blobs are at account.blob.core.windows.net, in every cloud of Azure.
_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:blob|dfs)\.([a-z0-9.-]+)")


def open_azure(url: str, options: Mapping[str, object]) -> ObstoreStore:
    """Return the store at ``az://container/prefix`` or ``abfss://container@account.dfs.core.windows.net/prefix``.

    Nothing is asked of it yet. Raises StoreConfigError.
    """
    protocol, _, rest = url.partition("://")
    place, _, root = rest.partition("?")[0].partition("/")
    container, at, host = place.partition("@")
    found = _HOST.fullmatch(host)
    if not _CONTAINER.fullmatch(container) or (at and not found):
        # Neither is repeated: there may be a password in the wrong place.
        raise StoreConfigError(
            f"{CONTAINER_NAME}; write {protocol}://container/prefix or {protocol}://container@account.dfs.core.windows.net/prefix"
        )
    root = root.strip("/")
    shown = f"{protocol}://{place}" + (f"/{root}" if root else "")
    config = _config(options, shown)
    if found:
        if options.get("account_name", found[1]) != found[1]:
            raise StoreConfigError(f"the URL and account_name in the storage options name two accounts: store={shown}")
        config["account_name"] = found[1]
        config.setdefault("endpoint", f"https://{found[1]}.blob.{found[2]}")

    def connect(transport: Any) -> AzureStore:
        return AzureStore(container, config=config, client_options=transport, retry_config=NO_RETRIES)

    try:
        return ObstoreStore(Place(shown, root, connect, CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, None))
    except (BaseError, ValueError, TypeError):
        # Not its text, nor as the cause: it may hold what was given.
        raise StoreConfigError(
            "URL, storage options or AZURE_* variables don't suit Azure: it needs account_name (or AZURE_STORAGE_ACCOUNT_NAME)"
            f" and a whole account_key or sas_token, if one is given: store={shown}"
        ) from None


def _config(options: Mapping[str, object], shown: str) -> Any:
    """obstore's words for the options. Raises StoreConfigError for what isn't one, or not text, and for two secrets."""
    if unknown := sorted(str(word) for word in options if word not in _WORDS):
        raise StoreConfigError(
            f"Azure has no use for these storage options: {', '.join(unknown)}; allowed are {', '.join(sorted(_WORDS))}:"
            f" store={shown}"
        )
    config: dict[str, object] = {word: value for word, value in options.items() if word != "anon"}
    if wrong := sorted(word for word, value in config.items() if not isinstance(value, str)):
        raise StoreConfigError(f"storage options that must be text: {', '.join(wrong)}: store={shown}")
    secrets = [word for word in _KINDS if word in config]
    if len(secrets) > 1 or (secrets and options.get("anon")):
        raise StoreConfigError(f"storage options: only one of {', '.join(_KINDS)}, anon: store={shown}")
    if secrets:
        config = {"credential_type": _KINDS[secrets[0]], **config}
    if secrets or "anon" in options:
        config["skip_signature"] = bool(options.get("anon"))
    return config
