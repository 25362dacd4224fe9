"""Answers of S3 and Azure that MinIO and Azurite don't give on request, in the form in which obstore hands them over.

tests/chaos/test_s3proxy.py, test_open.py and test_azure.py have the same from real servers: they notice when the form changes.
"""

from __future__ import annotations

import pytest
from obstore.exceptions import AlreadyExistsError as ObstoreAlreadyExistsError
from obstore.exceptions import BaseError, GenericError, InvalidPathError, PermissionDeniedError, UnauthenticatedError

from ckptd.errors import (
    AlreadyExistsError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)
from ckptd.store.obstore_errors import translate

KINDS: dict[int, type[Exception]] = {
    409: ObstoreAlreadyExistsError,
    412: ObstoreAlreadyExistsError,
    403: PermissionDeniedError,
    401: UnauthenticatedError,
    404: FileNotFoundError,
}


def answer(code: str, status: int) -> Exception:
    body = f"<Error><Code>{code}</Code><Message>?X-Amz-Signature=abc</Message></Error>" if code else ""
    text = (
        f"Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {status} X: {body}"
    )
    return KINDS.get(status, GenericError)(text)


@pytest.mark.parametrize(
    ("code", "status", "verb", "expected"),
    [
        ("PreconditionFailed", 412, "create", AlreadyExistsError),
        ("ConditionalRequestConflict", 409, "create", UnavailableError),
        ("OperationAborted", 409, "create", UnavailableError),
        ("SlowDown", 503, "put", UnavailableError),
        ("InternalError", 500, "create", UnavailableError),
        ("XMinioStorageFull", 507, "put", UnavailableError),
        ("RequestTimeout", 400, "put", UnavailableError),
        ("NotImplemented", 501, "create", UnsafeStoreError),
        ("NotImplemented", 501, "put", StoreError),
        ("AccessDenied", 403, "get", StoreConfigError),
        ("ExpiredToken", 400, "put", StoreConfigError),
        ("PermanentRedirect", 301, "get", StoreConfigError),
        ("NoSuchBucket", 404, "get", StoreConfigError),
        ("InvalidBucketName", 400, "create", StoreConfigError),
        ("NoSuchKey", 404, "get", NotFoundError),
        ("EntityTooLarge", 400, "put", StoreError),
        ("BlobAlreadyExists", 409, "create", AlreadyExistsError),
        ("ConditionNotMet", 412, "create", AlreadyExistsError),
        ("ContainerBeingDeleted", 409, "create", UnavailableError),
        ("AccountBeingCreated", 409, "create", UnavailableError),
        ("ServerBusy", 503, "create", UnavailableError),
        ("OperationTimedOut", 500, "create", UnavailableError),
        ("TooManyRequests", 429, "put", UnavailableError),
        ("BlobImmutableDueToPolicy", 409, "put", StoreError),
        ("LeaseIdMissing", 412, "put", StoreError),
        ("AuthenticationFailed", 403, "get", StoreConfigError),
        ("AuthorizationPermissionMismatch", 403, "get", StoreConfigError),
        ("InvalidAuthenticationInfo", 401, "get", StoreConfigError),
        ("ContainerNotFound", 404, "get", StoreConfigError),
        ("BlobNotFound", 404, "get", NotFoundError),
        ("", 412, "create", AlreadyExistsError),
        ("", 409, "create", UnavailableError),
        ("", 503, "info", UnavailableError),
        ("", 404, "info", NotFoundError),
        ("", 404, "put", StoreConfigError),
        ("", 403, "info", StoreConfigError),
        ("", 401, "info", StoreConfigError),
        ("", 400, "info", StoreConfigError),
    ],
)
def test_answers(code: str, status: int, verb: str, expected: type[StoreError]) -> None:
    found = translate(answer(code, status), verb, "k", "s3://b")
    assert type(found) is expected
    assert (code or str(status)) in str(found)
    assert "Signature" not in str(found)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("404", FileNotFoundError, NotFoundError),
        ("403", GenericError, StoreConfigError),
        ("503", GenericError, UnavailableError),
    ],
)
def test_answers_within_a_batch(code: str, kind: type[Exception], expected: type[StoreError]) -> None:
    error = kind(
        f"Generic MicrosoftAzure error: Bulk delete request failed for key k: The reason. (code: {code})\n\nDebug source:\n"
    )
    assert type(translate(error, "delete", "k", "az://b")) is expected


def test_a_taken_key_is_one_only_for_create() -> None:
    assert not isinstance(translate(answer("PreconditionFailed", 412), "get", "k", "s3://b"), AlreadyExistsError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            GenericError("Generic S3 error: Error performing GET http://h in 1ms - HTTP error: error sending request"),
            UnavailableError,
        ),
        (GenericError("Generic S3 error: HTTP error: request or response body error"), UnavailableError),
        (InvalidPathError("Path contained an empty segment"), StoreConfigError),
        (ValueError("x"), StoreConfigError),
        (BaseError("something new"), StoreError),
        (RuntimeError("?"), StoreError),
    ],
)
def test_errors_without_an_answer(error: Exception, expected: type[StoreError]) -> None:
    assert type(translate(error, "get", "k", "s3://b")) is expected


def test_the_right_region_is_repeated() -> None:
    text = "status code: 400 Bad Request: <Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    found = translate(GenericError(f"Server returned non-2xx {text}"), "get", "k", "s3://b")
    assert isinstance(found, StoreConfigError) and "region=eu-west-1" in str(found)
