"""Elements as numbers, as torch reads the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckptd.codec.values import has_fractions, values
from ckptd.errors import ConfigError
from ckptd.model.dtypes import item_bytes

EVERY_BYTE = [*(name for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"))]
OTHERS = ["float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"]
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@pytest.mark.parametrize("dtype", [*EVERY_BYTE, *OTHERS, *INTEGERS])
def test_as_torch_has_them(dtype: str) -> None:
    if not hasattr(torch, dtype):
        pytest.fail(f"torch has no {dtype}")
    body = np.arange(256, dtype=np.uint8) if dtype in EVERY_BYTE else np.arange(1 << 16, dtype="<u2").view(np.uint8)
    theirs = torch.from_numpy(body.copy()).view(getattr(torch, dtype))
    if dtype == "complex32":
        theirs = theirs.to(torch.complex64)
    elif has_fractions(dtype) and not dtype.startswith("complex") and dtype != "float64":
        theirs = theirs.to(torch.float32)
    ours = values(body.tobytes(), dtype)
    assert len(ours) * item_bytes(dtype) == len(body)
    np.testing.assert_array_equal(ours.astype(theirs.numpy().dtype), theirs.numpy())
    assert has_fractions(dtype) == (dtype not in INTEGERS)


def test_two_in_a_byte() -> None:
    """OCP microscaling formats 1.0: e2m1."""
    assert values(b"\x21\xf8", "float4_e2m1fn_x2").tolist() == [0.5, 1.0, -0.0, -6.0]


def test_bools_are_seen_as_they_are_stored() -> None:
    assert values(b"\0\1\7", "bool").tolist() == [0, 1, 7]


def test_an_object_has_no_numbers() -> None:
    with pytest.raises(ConfigError, match="no numbers"):
        values(b"x", "object")
