"""What an exception out of obstore means, in our terms.

Its classes say too little (a busy store is AlreadyExistsError, as it answers 409), so the answer itself is looked for in the
text: the status always, and the store's code where the answer had a body. Texts of the library are not copied into ours.
"""

from __future__ import annotations

import re

from obstore.exceptions import InvalidPathError

from ckptd.errors import StoreConfigError, StoreError, UnavailableError
from ckptd.store.answers import is_out_of_range as is_out_of_range_code
from ckptd.store.answers import translate_answer

# Keys can't hold any of this; what the store says about itself comes after its code.
# A delete on Azure is a request within a batch, whose status stands alone.
_STATUS = re.compile(r"(?:returned non-2xx status code: |Bulk delete request failed [^\n]*\(code: )(\d{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>")
# Said by the library: some servers (Azurite) answer 206, with no bytes, to a range that begins where the object ends.
_TOO_FAR = re.compile(r"Generic \w+ error: Wanted range starting at \d+, but object was only \d+ bytes long")
# Of Azure's identities; those of S3 come from botocore.
_IDENTITY = re.compile(
    r"Generic MicrosoftAzure error: "
    r"(?:Error performing token request|'az account get-access-token' command|Error reading federated token file)"
)
_NO_IDENTITY = (
    "no credentials for Azure: give account_key, sas_token or client_secret in the storage options, set"
    " AZURE_STORAGE_ACCOUNT_KEY, or give the machine an identity (anon = true for none)"
)
_TRY_AGAIN = {404, 408, 410, 429}  # what Azure's metadata service asks to be repeated
_TRANSPORT = "HTTP error: "
_MOST_TEXT = 20_000


def answer(error: Exception) -> tuple[str, int]:
    """The store's error code (else its status as text) and HTTP status; ('', 0) when no store has answered."""
    text = str(error)[:_MOST_TEXT]
    status = _STATUS.search(text)
    if status is None:
        return "", 0
    code = _CODE.search(text)
    return (code or status)[1], int(status[1])


def is_out_of_range(error: Exception) -> bool:
    """True if a read was refused because the object ends before the range begins."""
    return is_out_of_range_code(answer(error)[0]) or _TOO_FAR.match(str(error)) is not None


def _translate_identity(text: str, status: int, where: str) -> StoreError:
    """For no store has been asked: a status is that of the service which gives tokens."""
    if status >= 500 or status in _TRY_AGAIN or (not status and _TRANSPORT in text):
        return UnavailableError(f"the service that gives credentials fails, or there is none; {_NO_IDENTITY}: {where}")
    return StoreConfigError(f"{_NO_IDENTITY}: {where}")


def translate(error: Exception, verb: str, key: str, url: str) -> StoreError:
    """Return what to raise for ``error``; ``verb`` is the method of the store that met it."""
    text = str(error)[:_MOST_TEXT]
    code, status = answer(error)
    where = f"verb={verb} key={key} store={url} code={code or type(error).__name__}"
    if _IDENTITY.match(text):
        return _translate_identity(text, status, where)
    if region := _REGION.search(text):
        where += f" region={region[1]}"
    if code:
        return translate_answer(code, status, verb, where)
    if _TRANSPORT in text:
        return UnavailableError(f"the store can't be reached: {where}")
    if isinstance(error, (InvalidPathError, ValueError, TypeError)):
        return StoreConfigError(f"the store's URL doesn't suit this kind of store: {where}")
    return StoreError(f"the store's library failed: {where}")
