"""What gcsfs and other file systems raise, in our terms."""

from __future__ import annotations

import errno

import pytest

from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, StoreError, UnavailableError
from ckptd.store.fsspec_errors import is_out_of_range, translate
from ckptd.store.fsspec_store import FsspecStore


def answer(code: int) -> Exception:
    FsspecStore("gs://b", {"token": "anon"})  # gcsfs must be imported by our driver first, which turns off what it tries out
    from gcsfs.retry import HttpError

    error: Exception = HttpError({"code": code, "message": "?X-Goog-Signature=abc"})
    return error


@pytest.mark.parametrize(
    ("error", "verb", "expected"),
    [
        (429, "put", UnavailableError),
        (503, "create", UnavailableError),
        (412, "create", AlreadyExistsError),
        (401, "get", StoreConfigError),
        (404, "get", NotFoundError),
        (404, "put", StoreConfigError),
        (TimeoutError(), "get", UnavailableError),
        (ConnectionResetError(), "get", UnavailableError),
        (OSError(errno.EIO, "x"), "get", UnavailableError),
        (OSError("Forbidden: https://storage"), "get", StoreConfigError),
        (PermissionError(), "get", StoreConfigError),
        (FileNotFoundError(), "get", NotFoundError),
        (FileExistsError(), "create", AlreadyExistsError),
        (RuntimeError("?"), "get", StoreError),
    ],
)
def test_errors(error: Exception | int, verb: str, expected: type[StoreError]) -> None:
    found = translate(answer(error) if isinstance(error, int) else error, verb, "k", "gs://b")
    assert type(found) is expected
    assert "Signature" not in str(found)


def test_a_taken_key_is_one_only_for_create() -> None:
    assert not isinstance(translate(answer(412), "get", "k", "gs://b"), AlreadyExistsError)


def test_an_answer_is_found_below_other_errors() -> None:
    error = OSError("retries are over")
    error.__cause__ = answer(416)
    assert is_out_of_range(error) and not is_out_of_range(OSError("416"))
