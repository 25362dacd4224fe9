"""Answers of S3 that MinIO doesn't give on request; their form is botocore's and s3fs' own."""

from __future__ import annotations

import errno

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError
from s3fs.errors import translate_boto_error

from ckptd.errors import (
    AlreadyExistsError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)
from ckptd.store.fsspec_errors import translate


def answer(code: str, status: int) -> Exception:
    error = ClientError(
        {"Error": {"Code": code, "Message": "?X-Amz-Signature=abc"}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "PutObject",
    )
    translated: Exception = translate_boto_error(error)
    return translated


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
    ],
)
def test_codes(code: str, status: int, verb: str, expected: type[StoreError]) -> None:
    found = translate(answer(code, status), verb, "k", "s3://b")
    assert type(found) is expected
    assert code in str(found)
    assert "Signature" not in str(found)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoCredentialsError(), StoreConfigError),
        (CredentialRetrievalError(provider="x", error_msg="y"), UnavailableError),
        (TimeoutError(), UnavailableError),
        (ConnectionResetError(), UnavailableError),
        (OSError(errno.EIO, "x"), UnavailableError),
        (OSError("Forbidden: https://storage"), StoreConfigError),
        (PermissionError(), StoreConfigError),
        (FileNotFoundError(), NotFoundError),
        (RuntimeError("?"), StoreError),
    ],
)
def test_errors_without_an_answer(error: Exception, expected: type[StoreError]) -> None:
    assert type(translate(error, "get", "k", "s3://b")) is expected


def test_a_taken_key_is_one_only_for_create() -> None:
    assert type(translate(FileExistsError(), "create", "k", "gs://b")) is AlreadyExistsError
    assert not isinstance(translate(answer("PreconditionFailed", 412), "get", "k", "s3://b"), AlreadyExistsError)
