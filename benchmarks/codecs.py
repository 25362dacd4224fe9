"""Other ways to make tensors' bytes smaller without loss: zipnn, and plain zstd. One thread each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Codec:
    """``encode`` gets a copy of a tensor's bytes, which it may destroy (zipnn does); ``decode`` makes the same bytes again.

    The copy is not to be timed: it is ours, not the codec's.
    """

    name: str
    encode: Callable[[bytearray], bytes]
    decode: Callable[[bytes], bytes | bytearray]


def zipnn(dtype: torch.dtype) -> Codec:
    """zipnn for this dtype, in its own settings but for threads: one, as its cost per core is what is compared."""
    from zipnn import ZipNN

    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    made = ZipNN(method="HUFFMAN", input_format="byte", bytearray_dtype=name, threads=1)
    return Codec("zipnn", made.compress, made.decompress)


def zstd() -> Codec:
    """zstd at level 1 on all bytes as they lie."""
    import zstandard

    compressor, decompressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL), zstandard.ZstdDecompressor()
    return Codec("zstd", compressor.compress, decompressor.decompress)
