"""What a store's answer means, in our terms: its error code and HTTP status, however a library hands them over."""

from __future__ import annotations

from typing import Final

from ckptd.errors import (
    AlreadyExistsError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)

BUCKET: Final = "the bucket does not exist: create it, or correct the URL"
BUCKET_NAME: Final = "the bucket's name is not a valid one: correct the URL"
CONTAINER_NAME: Final = "the container's name, or the account's, is not a valid one: correct the URL"
_CONTAINER = "the container does not exist, or these credentials may not see it: create it, or correct the URL"
KEYS: Final = "the store does not know these credentials: check the key, the secret and the endpoint"
RIGHTS: Final = (
    "these credentials may not do this: they need to get, put, list and delete objects "
    "(without the right to list, S3 says 'forbidden' for 'not found')"
)
_EXPIRED = "the credentials have expired: get new ones"
_REFUSED = "the account refuses these credentials: check the key or token, its rights, and the account's network rules"
_REGION = "the bucket is in another region or at another endpoint: set them in the storage options"

_CONFIG_CODES = {
    "NoSuchBucket": BUCKET,
    "InvalidBucketName": BUCKET_NAME,
    "InvalidAccessKeyId": KEYS,
    "SignatureDoesNotMatch": KEYS,
    "InvalidToken": KEYS,
    "InvalidSecurity": KEYS,
    "401": KEYS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "AccessDenied": RIGHTS,
    "AllAccessDisabled": RIGHTS,
    "403": RIGHTS,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "400": "the store refused a request without saying why: check region, endpoint and credentials",
    # Azure's; a wrong signature of a shared key is AuthenticationFailed there, and AuthorizationFailure with its emulator.
    "ContainerNotFound": _CONTAINER,
    "ResourceNotFound": _CONTAINER,
    "InvalidResourceName": CONTAINER_NAME,
    "AuthenticationFailed": KEYS,
    "InvalidAuthenticationInfo": KEYS,
    "NoAuthenticationInformation": KEYS,
    "AuthorizationFailure": _REFUSED,
    "AuthorizationPermissionMismatch": RIGHTS,
    "UnauthorizedBlobOverwrite": RIGHTS,
    "InsufficientAccountPermissions": RIGHTS,
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: use an identity or a token of it",
    "AccountIsDisabled": "the account is disabled",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}
_MISSING_CODES = {"NoSuchKey", "BlobNotFound", "404"}
# Azure's answer to a create of a taken key is 409, too: only the word tells it from a busy store.
_TAKEN_CODES = {"PreconditionFailed", "412", "BlobAlreadyExists", "ConditionNotMet"}
# 409 from S3 means that another create of the key is under way: not that it exists, and not that it doesn't.
_BUSY_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "408", "409", "429"}
# Azure: among them, a container of this name is still being deleted, or an account still being made.
_BUSY_CODES |= {"TooManyRequests", "ContainerBeingDeleted", "AccountBeingCreated"}
_FULL_CODES = {"XMinioStorageFull", "QuotaExceeded", "507"}
_RANGE_CODES = {"InvalidRange", "416"}


def is_out_of_range(code: str) -> bool:
    """True if the store refused a read because the object ends before the range begins."""
    return code in _RANGE_CODES


def translate_answer(code: str, status: int, verb: str, where: str) -> StoreError:
    """Return what to raise for an answer: ``code`` is the store's word for it, or else the status as text.

    ``verb`` is the method of the store that met it; ``where`` ends the message.
    """
    if code in _CONFIG_CODES:
        return StoreConfigError(f"{_CONFIG_CODES[code]}: {where}")
    if verb == "create" and code in _TAKEN_CODES:
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
    if code in _MISSING_CODES:
        return missing(verb, where)
    return StoreError(f"the store refused: {where} status={status}")


def missing(verb: str, where: str) -> StoreError:
    """For 'not found': of a write only the place itself can be missing."""
    if verb in ("put", "create"):
        return StoreConfigError(f"{BUCKET}: {where}")
    return NotFoundError(f"no such object: {where}")
