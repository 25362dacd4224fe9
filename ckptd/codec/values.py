"""Stored elements as numbers. What NumPy has no type for is decoded by its bits: bfloat16, the 8-bit floats, complex32."""

from __future__ import annotations

from typing import Final

import numpy as np

from ckptd.codec.hash import Buffer
from ckptd.errors import ConfigError
from ckptd.model.columns import Array

_PLAIN: Final = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32")},
    **{
        name: np.dtype(name).newbyteorder("<") for name in ("int64", "float16", "float32", "float64", "complex64", "complex128")
    },
    "bool": np.dtype("u1"),  # a byte that is neither 0 nor 1 shall be seen
}


def _small_float(exponent_bits: int, bias: int, special: str) -> Array:
    """The values of all bytes of an 8-bit float. ``special``: "ieee" (inf and NaN), "fn" (NaN at all ones), "fnuz" (NaN at -0).

    Formats as in the OCP 8-bit floating point specification 1.0; the "fnuz" ones have no negative zero and no infinity.
    """
    bits = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    sign = np.where(bits >> 7, -1.0, 1.0)
    exponent, mantissa = bits >> mantissa_bits & (1 << exponent_bits) - 1, bits & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits)
    found = sign * np.where(exponent, np.ldexp(1 + fraction, exponent - bias), np.ldexp(fraction, 1 - bias))
    if special == "ieee":
        top = exponent == (1 << exponent_bits) - 1
        found = np.where(top, np.where(mantissa, np.nan, sign * np.inf), found)
    elif special == "fn":
        found = np.where(bits & 0x7F == 0x7F, np.nan, found)
    else:
        found = np.where(bits == 0x80, np.nan, found)
    return found.astype(np.float32)


_BYTES: Final = {
    "float8_e4m3fn": _small_float(4, 7, "fn"),
    "float8_e4m3fnuz": _small_float(4, 8, "fnuz"),
    "float8_e5m2": _small_float(5, 15, "ieee"),
    "float8_e5m2fnuz": _small_float(5, 16, "fnuz"),
    # scales: powers of two, without a sign
    "float8_e8m0fnu": np.where(np.arange(256) < 255, np.ldexp(1.0, np.arange(256) - 127), np.nan).astype(np.float32),
}
_HALVES: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # of a float4_e2m1


def values(body: Buffer, dtype: str) -> Array:
    """The elements in whole-element ``body``, in order: of NumPy's own type, or float32 (complex64) where it has none.

    float4_e2m1fn_x2 gives two for each byte, the low half first. Raises ConfigError for what has no numbers.
    """
    if dtype in _PLAIN:
        return np.frombuffer(body, _PLAIN[dtype])
    if dtype == "bfloat16":
        return (np.frombuffer(body, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "complex32":
        return np.frombuffer(body, "<f2").astype(np.float32).view(np.complex64)
    raw = np.frombuffer(body, np.uint8)
    if dtype in _BYTES:
        return _BYTES[dtype][raw]
    if dtype == "float4_e2m1fn_x2":
        return np.stack([_HALVES[raw & 15], _HALVES[raw >> 4]], axis=1).reshape(-1)
    raise ConfigError(f"elements of type {dtype!r} are no numbers")


def has_fractions(dtype: str) -> bool:
    """Is a difference of two such elements a measure: floats and complex numbers, not integers and bools?"""
    return dtype.startswith(("float", "bfloat", "complex"))
