"""Ways to make tensors' bytes smaller without loss: ckptd's, zipnn, and plain zstd. One thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.state import State
from ckptd.codec.frames import encode_into
from ckptd.model.frame import MAX_FRAME_BYTES
from ckptd.pipeline.frames import Extent, cut

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


def encoded(frames: Framed, rooms: Sequence[memoryview] | None = None) -> Iterator[tuple[int, memoryview]]:
    """(codec id, stored bytes) of each frame, in its own one of ``rooms``, else valid until the next frame."""
    shared = memoryview(bytearray(MAX_FRAME_BYTES))
    for number, frame in enumerate(frames.raw):
        room = rooms[number] if rooms else shared
        codec_id, count = encode_into(frame, frames.dtype, "planes", room)
        yield codec_id, room[:count]
