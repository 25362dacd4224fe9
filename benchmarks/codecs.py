"""Ways to make tensors' bytes smaller without loss: ckptd's, zipnn, and plain zstd. One thread each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.result import OURS
from benchmarks.state import State
from ckptd.codec.frames import decode_into, encode_into
from ckptd.codec.hash import Buffer
from ckptd.model.frame import MAX_FRAME_BYTES
from ckptd.pipeline.frames import Extent, cut

_ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Codec:
    """``encode`` gets a copy of a tensor's or a frame's bytes, which it may destroy (zipnn does); ``decode`` makes the same
    bytes again of what was encoded last. What either gives is valid until it is called again.

    The copy is not to be timed: it is ours, not the codec's.
    """

    name: str
    encode: Callable[[bytearray], Buffer]
    decode: Callable[[Buffer], Buffer]


class _Frames:
    """A frame at a time, in buffers for any one of them."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._room, self._back = (memoryview(bytearray(b"\1" * MAX_FRAME_BYTES)) for _ in range(2))
        self._codec_id, self._raw_bytes = 0, 0

    def encode(self, raw: bytearray) -> memoryview:
        self._codec_id, count = encode_into(memoryview(raw), self._dtype, "planes", self._room)
        self._raw_bytes = len(raw)
        return self._room[:count]

    def decode(self, stored: Buffer) -> memoryview:
        back = self._back[: self._raw_bytes]
        decode_into(self._codec_id, stored, back)
        return back


def ckptd(dtype: str) -> Codec:
    """ckptd's own for frames of this dtype, into memory that is used again."""
    frames = _Frames(dtype)
    return Codec(OURS, frames.encode, frames.decode)


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


@dataclass(frozen=True, slots=True)
class Framed:
    """A state as the daemon cuts it: raw bytes of its frames, all of one ``dtype``."""

    dtype: str
    raw: list[memoryview]
    raw_bytes: int


def framed(state: State) -> Framed:
    """The frames of a state of one dtype, in new memory, with small tensors packed."""
    parts = [memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()) for tensor in state.values()]
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    frames, _ = cut([Extent(number, 0, part.nbytes, dtype) for number, part in enumerate(parts)], MAX_FRAME_BYTES)
    raw = [
        memoryview(b"".join(parts[piece.source][piece.start : piece.start + piece.count] for piece in frame.pieces))
        for frame in frames
    ]
    return Framed(dtype, raw, sum(frame.nbytes for frame in raw))
