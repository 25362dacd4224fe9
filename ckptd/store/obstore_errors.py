"""What an exception out of obstore means, in our terms.

Its classes say too little (a busy store is AlreadyExistsError, as it answers 409), so the answer itself is looked for in the
text: the status always, and the store's code where the answer had a body. Texts of the library are not copied into ours.
"""

from __future__ import annotations

import re

from obstore.exceptions import InvalidPathError

from ckptd.errors import StoreConfigError, StoreError, UnavailableError
from ckptd.store.answers import translate_answer

# Keys can't hold any of this; what the store says about itself comes after its code.
_STATUS = re.compile(r"returned non-2xx status code: (\d{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>")
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


def translate(error: Exception, verb: str, key: str, url: str) -> StoreError:
    """Return what to raise for ``error``; ``verb`` is the method of the store that met it."""
    text = str(error)[:_MOST_TEXT]
    code, status = answer(error)
    where = f"verb={verb} key={key} store={url} code={code or type(error).__name__}"
    if region := _REGION.search(text):
        where += f" region={region[1]}"
    if code:
        return translate_answer(code, status, verb, where)
    if _TRANSPORT in text:
        return UnavailableError(f"the store can't be reached: {where}")
    if isinstance(error, (InvalidPathError, ValueError, TypeError)):
        return StoreConfigError(f"the store's URL doesn't suit this kind of store: {where}")
    return StoreError(f"the store's library failed: {where}")
