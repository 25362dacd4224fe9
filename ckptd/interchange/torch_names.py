"""Names by which torch.save knows element types."""

from __future__ import annotations

from typing import Final

STORAGES: Final = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "bfloat16": "BFloat16Storage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
}
"""Types with a storage class. The others have an untyped storage, with the type beside it."""
DTYPES_OF_STORAGES: Final = {storage: dtype for dtype, storage in STORAGES.items()}
UNTYPED: Final = "UntypedStorage"
