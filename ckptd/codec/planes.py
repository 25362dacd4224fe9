"""The codec for tensors (FORMAT.md, "Planes").

Neighbours in a tensor have nearly the same exponent and unrelated mantissas. So elements are taken apart into planes (byte i of
every element), and only planes that gain by it are coded. Of floats, all that can be gained is that some bytes are more
frequent than others; integers, objects and the like may repeat.

    float32: sign ▸ exponent ▸ mantissa ─ rotate by one bit ─► exponent │ mantissa ▸ sign ─► 4 planes, the top one coded

Of a plane of neighbouring values, as exponents are, two bytes are coded as one (pairs.py): half the work, and no more bytes. Of
bf16 a part is taken apart otherwise, for fewer bytes and more work (heads.py).
"""

from __future__ import annotations

import struct
import threading
from typing import Final

from ckptd.codec.entropy import Coder, Contexts
from ckptd.codec.hash import Buffer
from ckptd.codec.heads import HEADS, decode_heads, encode_heads, in_heads, window_of
from ckptd.codec.pairs import pair, unpair, window
from ckptd.codec.split import WIDTHS, merge, split
from ckptd.errors import CorruptError
from ckptd.model.dtypes import item_bytes

GAIN: Final = 0.03
"""What gains less isn't worth the time that decoding takes."""

_HEAD: Final = struct.Struct("<BBBB")  # width, turn, planes as bits: coded ones, those of them that are paired
_SIZE: Final = struct.Struct("<I")
_PAIRED: Final = struct.Struct("<BI")  # base, number of bytes aside
_ASIDE_SHARE: Final = 64  # one byte in so many may be aside: it takes its own room, and a code as well
_SAMPLE_PIECES: Final = 16
_PIECE_ELEMENTS: Final = 256

_Span = tuple[int, int]  # the first value, how many values from it on
_Coded = dict[int, _Span | None]
_Kind = tuple[int, int, Coder]

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
    kind = _kind(dtype)
    if not raw.nbytes or raw.nbytes % kind[0]:
        return None
    coded = _worth_coding(raw, kind)
    if not coded:
        return None
    span = coded.get(1) if len(coded) == 1 else None
    first = in_heads(raw.nbytes) if dtype == "bfloat16" and span else 0
    if span and first:
        [heads] = _scratch.planes(1, first // 2)
        begin = encode_heads(raw[:first], window_of(*span), _contexts.zstd, heads, room[: int(first * (1 - GAIN))])
        count = None if begin is None else _encode(raw[first:], kind, coded, room[begin:])
        if begin is not None and count is not None:
            return begin + count
    return _encode(raw, kind, coded, room)


def _encode(raw: memoryview, kind: _Kind, coded: _Coded, room: memoryview) -> int | None:
    width, turn, coder = kind
    limit, size_bytes = int(raw.nbytes * (1 - GAIN)), raw.nbytes // width
    end = _HEAD.size + _SIZE.size * len(coded)
    if end + (width - len(coded)) * size_bytes >= limit:
        return None
    *planes, spare = _scratch.planes(width + 1, size_bytes)
    if width == 1:
        planes = [raw]
    for number in range(width):
        if number not in coded:
            planes[number] = room[end : end + size_bytes]
            end += size_bytes
    if width > 1:
        split(raw, turn, planes)
    sizes, paired = [], 0
    for number, span in coded.items():
        count = _encode_pairs(planes[number], span, spare, room[end:limit]) if span else None
        if count is not None:
            paired |= 1 << number
        else:
            count = _contexts.zstd.compress_into(coder, planes[number], room[end:limit])
        if count is None:
            return None
        sizes.append(count)
        end += count
    _HEAD.pack_into(room, 0, width, turn, sum(1 << number for number in coded), paired)
    struct.pack_into(f"<{len(sizes)}I", room, _HEAD.size, *sizes)
    return end


def _encode_pairs(plane: memoryview, span: _Span, spare: memoryview, room: memoryview) -> int | None:
    """Bytes written; None when they don't fit or too many are aside."""
    base, values = span
    aside = room[_PAIRED.size : _PAIRED.size + plane.nbytes // _ASIDE_SHARE]
    pairs = spare[: (plane.nbytes + 1) // 2]
    missing = pair(plane, base, values, pairs, aside)
    if missing < 0 or room.nbytes < _PAIRED.size + missing:
        return None
    _PAIRED.pack_into(room, 0, base, missing)
    count = _contexts.zstd.compress_into("entropy", pairs, room[_PAIRED.size + missing :])
    return None if count is None else _PAIRED.size + missing + count


def _kind(dtype: str) -> _Kind:
    """Bytes of an element (of a part of a complex one), by how many bits it is rotated, and how its planes are coded."""
    width = item_bytes(dtype)
    if dtype.startswith("complex"):
        width //= 2
    if not dtype.startswith(("float", "bfloat", "complex")):
        return width, 0, "lz"
    return width, int(width > 1), "entropy"  # the sign is noise, which would come between exponents


def _worth_coding(raw: memoryview, kind: _Kind) -> _Coded:
    """The planes that gain by coding, going by a sample, and between which values to pair their bytes, if it is worth it.

    Of what is hardly more than a sample, all are.
    """
    width, turn, coder = kind
    step = raw.nbytes // width // _SAMPLE_PIECES * width
    piece_bytes = _PIECE_ELEMENTS * width
    if step < 2 * piece_bytes:
        return dict.fromkeys(range(width))
    sample = memoryview(b"".join(raw[i * step : i * step + piece_bytes] for i in range(_SAMPLE_PIECES)))
    size_bytes = sample.nbytes // width
    *planes, room = _scratch.planes(width + 1, size_bytes)
    if width == 1:
        planes = [sample]
    else:
        split(sample, turn, planes)
    room = room[: int(size_bytes * (1 - GAIN))]
    gains = [i for i, plane in enumerate(planes) if _contexts.zstd.compress_into(coder, plane, room) is not None]
    return {number: _span(planes[number]) if coder == "entropy" else None for number in gains}


def _span(sample: memoryview) -> _Span | None:
    base, values, outside = window(sample)
    return (base, values) if outside * _ASIDE_SHARE <= sample.nbytes else None


def decode_planes(stored: Buffer, destination: memoryview) -> None:
    """Fill ``destination``, which is as long as the raw bytes. Never writes or allocates more. Raises CorruptError."""
    body = memoryview(stored)
    if body.nbytes and body[0] == HEADS:
        stored_bytes, raw_bytes = decode_heads(body, destination, _contexts.zstd, _scratch.planes)
        body, destination = body[stored_bytes:], destination[raw_bytes:]
    if body.nbytes < _HEAD.size:
        raise CorruptError(f"a frame of planes has only {body.nbytes} bytes")
    width, turn, mask, paired = _HEAD.unpack_from(body)
    known = width in (1, *WIDTHS) and turn <= (width > 1) and 0 < mask < 1 << width and not paired & ~mask
    if not known or destination.nbytes % width:
        raise CorruptError(f"no planes of {destination.nbytes} bytes: {width=} {turn=} coded={mask:#x} paired={paired:#x}")
    coded = [number for number in range(width) if mask >> number & 1]
    size_bytes = destination.nbytes // width
    end = _HEAD.size + _SIZE.size * len(coded)
    if body.nbytes < end:
        raise CorruptError(f"a frame of planes has only {body.nbytes} bytes")
    sizes = struct.unpack_from(f"<{len(coded)}I", body, _HEAD.size)
    if body.nbytes != end + (width - len(coded)) * size_bytes + sum(sizes):
        raise CorruptError(f"a frame of planes has {body.nbytes} bytes, which isn't what its head says")
    *planes, spare = _scratch.planes(width + 1, size_bytes)
    if width == 1:
        planes = [destination]
    for number in range(width):
        if number not in coded:
            planes[number] = body[end : end + size_bytes]
            end += size_bytes
    for number, count in zip(coded, sizes, strict=True):
        if paired >> number & 1:
            _decode_pairs(body[end : end + count], spare, planes[number])
        else:
            _contexts.zstd.decompress_into(body[end : end + count], planes[number])
        end += count
    if width > 1:
        merge(destination, turn, planes)


def _decode_pairs(stored: memoryview, spare: memoryview, plane: memoryview) -> None:
    if stored.nbytes < _PAIRED.size:
        raise CorruptError(f"a plane of pairs has only {stored.nbytes} bytes")
    base, missing = _PAIRED.unpack_from(stored)
    if missing > stored.nbytes - _PAIRED.size:
        raise CorruptError(f"a plane of pairs has {stored.nbytes} bytes, of which {missing} would be aside")
    begin, pairs = _PAIRED.size + missing, spare[: (plane.nbytes + 1) // 2]
    _contexts.zstd.decompress_into(stored[begin:], pairs)
    try:
        unpair(pairs, base, stored[_PAIRED.size : begin], plane)
    except ValueError as error:
        raise CorruptError(f"a plane of pairs is damaged: {error}") from None
