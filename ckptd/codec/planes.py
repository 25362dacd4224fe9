"""The codec for tensors (FORMAT.md, "Planes").

Neighbours in a tensor have nearly the same exponent and unrelated mantissas. So elements are taken apart into planes (byte i of
every element), and only planes that gain by it are coded. Of floats, all that can be gained is that some bytes are more
frequent than others; integers, objects and the like may repeat.

    float32: sign ▸ exponent ▸ mantissa ─ rotate by one bit ─► exponent │ mantissa ▸ sign ─► 4 planes, the top one coded
"""

from __future__ import annotations

import struct
import threading
from typing import Final

from ckptd.codec.entropy import Coder, Contexts
from ckptd.codec.hash import Buffer
from ckptd.codec.split import WIDTHS, merge, split
from ckptd.errors import CorruptError
from ckptd.model.dtypes import item_bytes

GAIN: Final = 0.03
"""What gains less isn't worth the time that decoding takes."""

_HEAD: Final = struct.Struct("<BBBB")  # width, turn, coded planes as bits, zero
_SIZE: Final = struct.Struct("<I")
_SAMPLE_PIECES: Final = 16
_PIECE_ELEMENTS: Final = 256

_contexts = Contexts()


class _Scratch(threading.local):
    """Memory for planes on their way, as big as the biggest frame that this thread has seen."""

    memory = memoryview(b"")

    def planes(self, count: int, size_bytes: int) -> list[memoryview]:
        """``count`` pieces of memory."""
        if self.memory.nbytes < count * size_bytes:
            self.memory = memoryview(bytearray(count * size_bytes))
        return [self.memory[i * size_bytes : (i + 1) * size_bytes] for i in range(count)]


_scratch = _Scratch()


def encode_planes(raw: memoryview, dtype: str, room: memoryview) -> int | None:
    """Bytes written at the start of ``room``; None when it isn't worth it, and then ``room`` holds anything."""
    width, turn, coder = _kind(dtype)
    if not raw.nbytes or raw.nbytes % width:
        return None
    coded = _worth_coding(raw, width, turn, coder)
    if not coded:
        return None
    limit, size_bytes = int(raw.nbytes * (1 - GAIN)), raw.nbytes // width
    end = _HEAD.size + _SIZE.size * len(coded)
    if end + (width - len(coded)) * size_bytes >= limit:
        return None
    planes = [raw] if width == 1 else _scratch.planes(width, size_bytes)
    for number in range(width):
        if number not in coded:
            planes[number] = room[end : end + size_bytes]
            end += size_bytes
    if width > 1:
        split(raw, turn, planes)
    sizes = []
    for number in coded:
        count = _contexts.zstd.compress_into(coder, planes[number], room[end:limit])
        if count is None:
            return None
        sizes.append(count)
        end += count
    _HEAD.pack_into(room, 0, width, turn, sum(1 << number for number in coded), 0)
    struct.pack_into(f"<{len(sizes)}I", room, _HEAD.size, *sizes)
    return end


def _kind(dtype: str) -> tuple[int, int, Coder]:
    """Bytes of an element (of a part of a complex one), by how many bits it is rotated, and how its planes are coded."""
    width = item_bytes(dtype)
    if dtype.startswith("complex"):
        width //= 2
    if not dtype.startswith(("float", "bfloat", "complex")):
        return width, 0, "lz"
    return width, int(width > 1), "entropy"  # the sign is noise, which would come between exponents


def _worth_coding(raw: memoryview, width: int, turn: int, coder: Coder) -> list[int]:
    """Numbers of the planes that gain by coding, going by a sample; of what is hardly more than a sample, all."""
    step = raw.nbytes // width // _SAMPLE_PIECES * width
    piece_bytes = _PIECE_ELEMENTS * width
    if step < 2 * piece_bytes:
        return list(range(width))
    sample = memoryview(b"".join(raw[i * step : i * step + piece_bytes] for i in range(_SAMPLE_PIECES)))
    size_bytes = sample.nbytes // width
    *planes, room = _scratch.planes(width + 1, size_bytes)
    if width == 1:
        planes = [sample]
    else:
        split(sample, turn, planes)
    room = room[: int(size_bytes * (1 - GAIN))]
    return [i for i, plane in enumerate(planes) if _contexts.zstd.compress_into(coder, plane, room) is not None]


def decode_planes(stored: Buffer, destination: memoryview) -> None:
    """Fill ``destination``, which is as long as the raw bytes. Never writes or allocates more. Raises CorruptError."""
    body = memoryview(stored)
    if body.nbytes < _HEAD.size:
        raise CorruptError(f"a frame of planes has only {body.nbytes} bytes")
    width, turn, mask, zero = _HEAD.unpack_from(body)
    if width not in (1, *WIDTHS) or turn > (width > 1) or not 0 < mask < 1 << width or zero or destination.nbytes % width:
        raise CorruptError(f"no planes of {destination.nbytes} bytes: width={width} turn={turn} coded={mask:#x} zero={zero}")
    coded = [number for number in range(width) if mask >> number & 1]
    size_bytes = destination.nbytes // width
    end = _HEAD.size + _SIZE.size * len(coded)
    if body.nbytes < end:
        raise CorruptError(f"a frame of planes has only {body.nbytes} bytes")
    sizes = struct.unpack_from(f"<{len(coded)}I", body, _HEAD.size)
    if body.nbytes != end + (width - len(coded)) * size_bytes + sum(sizes):
        raise CorruptError(f"a frame of planes has {body.nbytes} bytes, which isn't what its head says")
    planes = [destination] if width == 1 else _scratch.planes(width, size_bytes)
    for number in range(width):
        if number not in coded:
            planes[number] = body[end : end + size_bytes]
            end += size_bytes
    for number, count in zip(coded, sizes, strict=True):
        _contexts.zstd.decompress_into(body[end : end + count], planes[number])
        end += count
    if width > 1:
        merge(destination, turn, planes)
