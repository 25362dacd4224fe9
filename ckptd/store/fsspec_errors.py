"""What an exception out of an fsspec file system means, in our terms.

Texts of the libraries are not copied into ours: they may hold a signed URL.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ckptd.errors import AlreadyExistsError, StoreConfigError, StoreError, UnavailableError
from ckptd.store.answers import RIGHTS, missing, translate_answer
from ckptd.store.answers import is_out_of_range as is_out_of_range_code

# Classes of aiohttp, requests and google.auth, by name: they are there only with the file systems that use them.
_TRANSIENT_NAMES = {"ClientError", "RequestException", "TransportError", "ChecksumError"}
_LOGIN_NAMES = {"DefaultCredentialsError", "RefreshError", "GoogleAuthError"}


def is_out_of_range(error: Exception) -> bool:
    """True if the store refused a read because the object ends before the range begins."""
    return is_out_of_range_code(_answer(error))


def translate(error: Exception, verb: str, key: str, url: str) -> StoreError:
    """Return what to raise for ``error``; ``verb`` is the method of the store that met it."""
    code = _answer(error)
    where = f"verb={verb} key={key} store={url} code={code or type(error).__name__}"
    if verb == "create" and isinstance(error, FileExistsError):
        return AlreadyExistsError(f"the key is taken: {where}")
    if code:
        return translate_answer(code, int(code), verb, where)
    if isinstance(error, FileNotFoundError):
        return missing(verb, where)
    return _translate_without_answer(error, where)


def _translate_without_answer(error: Exception, where: str) -> StoreError:
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _LOGIN_NAMES and not names & _TRANSIENT_NAMES and not getattr(error, "retryable", False):
        return StoreConfigError(f"no usable credentials; see the file system's documentation of its storage options: {where}")
    if isinstance(error, PermissionError) or _is_gcs_forbidden(error):
        return StoreConfigError(f"{RIGHTS}: {where}")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOTDIR):
        return StoreConfigError(f"this place can't be written: {where}")
    if isinstance(error, (OSError, TimeoutError)) or names & _TRANSIENT_NAMES or getattr(error, "retryable", False):
        return UnavailableError(f"the store can't be reached: {where}")
    if isinstance(error, (TypeError, ValueError)):
        return StoreConfigError(f"URL or storage options don't suit this file system: {where}")
    return StoreError(f"the file system failed: {where}")


def _is_gcs_forbidden(error: Exception) -> bool:
    # gcsfs says 403 with a bare OSError whose text begins so; it has no code to look at.
    return isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden")


def _answer(error: Exception) -> str:
    """The HTTP status of the store's answer out of the chain of causes; '' when no store has answered."""
    for cause in _causes(error):
        code = getattr(cause, "code", None)  # gcsfs' HttpError
        if type(cause).__name__ == "HttpError" and code is not None and str(code).isdigit():
            return str(code)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__
