"""What an exception out of an fsspec file system means, in our terms.

s3fs hides the server's answer behind an errno that says little (a refused create and a bad bucket name are both EINVAL, a
missing bucket is FileNotFoundError), so the answer's error code is looked up in the chain of causes first. Texts of the
libraries are not copied into ours: they may hold a signed URL.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    ParamValidationError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from ckptd.errors import (
    AlreadyExistsError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)

_BUCKET = "the bucket does not exist: create it, or correct the URL"
_BUCKET_NAME = "the bucket's name is not a valid one: correct the URL"
_KEYS = "the store does not know these credentials: check the key, the secret and the endpoint"
_EXPIRED = "the credentials have expired: get new ones"
_RIGHTS = (
    "these credentials may not do this: they need to get, put, list and delete objects "
    "(without the right to list, S3 says 'forbidden' for 'not found')"
)
_REGION = "the bucket is in another region or at another endpoint: set them in the storage options"

_CONFIG_CODES = {
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET_NAME,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "InvalidSecurity": _KEYS,
    "401": _KEYS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "403": _RIGHTS,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "400": "the store refused a request without saying why: check region, endpoint and credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}
_MISSING_CODES = {"NoSuchKey", "404"}
_TAKEN_CODES = {"PreconditionFailed", "412"}
# 409 from S3 means that another create of the key is under way: not that it exists, and not that it doesn't.
_BUSY_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "408", "409", "429"}
_FULL_CODES = {"XMinioStorageFull", "QuotaExceeded", "507"}
_RANGE_CODES = {"InvalidRange", "416"}
_TRANSIENT_BOTO = (
    HTTPClientError,
    BotoConnectionError,
    ResponseStreamingError,
    IncompleteReadError,
    CredentialRetrievalError,
    MetadataRetrievalError,
)
# Classes of aiohttp, requests and google.auth, by name: they are there only with the file systems that use them.
_TRANSIENT_NAMES = {"ClientError", "RequestException", "TransportError", "ChecksumError"}
_LOGIN_NAMES = {"DefaultCredentialsError", "RefreshError", "GoogleAuthError"}


def is_out_of_range(error: Exception) -> bool:
    """True if the store refused a read because the object ends before the range begins."""
    return _answer(error)[0] in _RANGE_CODES


def translate(error: Exception, verb: str, key: str, url: str) -> StoreError:
    """Return what to raise for ``error``; ``verb`` is the method of the store that met it."""
    code, status = _answer(error)
    where = f"verb={verb} key={key} store={url} code={code or type(error).__name__}"
    if code in _CONFIG_CODES:
        return StoreConfigError(f"{_CONFIG_CODES[code]}: {where}")
    writes = verb in ("put", "create")
    if verb == "create" and (code in _TAKEN_CODES or isinstance(error, FileExistsError)):
        return AlreadyExistsError(f"the key is taken: {where}")
    if code in _BUSY_CODES:
        return UnavailableError(f"the store is busy: {where}")
    if code == "NotImplemented" or status == 501:
        kind = UnsafeStoreError if verb == "create" else StoreError
        return kind(f"the store does not offer what this call needs: {where}")
    if code in _FULL_CODES:
        return UnavailableError(f"the store is full; free space there, and all goes on by itself: {where}")
    if status >= 500:
        return UnavailableError(f"the store failed: {where}")
    if code in _MISSING_CODES or (not code and isinstance(error, FileNotFoundError)):
        if writes:  # only the place itself can be missing for a write
            return StoreConfigError(f"{_BUCKET}: {where}")
        return NotFoundError(f"no such object: {where}")
    if code:
        return StoreError(f"the store refused: {where} status={status}")
    return _translate_without_answer(error, where)


def _translate_without_answer(error: Exception, where: str) -> StoreError:
    if isinstance(error, ParamValidationError):
        return StoreConfigError(f"{_BUCKET_NAME}: {where}")
    if isinstance(error, BotoCoreError):
        if isinstance(error, _TRANSIENT_BOTO):
            return UnavailableError(f"the store can't be reached: {where}")
        return StoreConfigError(f"the S3 client can't work with this URL, these options or credentials: {where}")
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _LOGIN_NAMES and not names & _TRANSIENT_NAMES and not getattr(error, "retryable", False):
        return StoreConfigError(f"no usable credentials; see the file system's documentation of its storage options: {where}")
    if isinstance(error, PermissionError) or _is_gcs_forbidden(error):
        return StoreConfigError(f"{_RIGHTS}: {where}")
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


def _answer(error: Exception) -> tuple[str, int]:
    """The store's error code and HTTP status out of the chain of causes; ('', 0) when no store has answered."""
    for cause in _causes(error):
        if isinstance(cause, ClientError):
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(cause.response.get("Error", {}).get("Code", "")), int(status)
        code = getattr(cause, "code", None)  # gcsfs' HttpError
        if type(cause).__name__ == "HttpError" and code is not None and str(code).isdigit():
            return str(code), int(code)
    return "", 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__
