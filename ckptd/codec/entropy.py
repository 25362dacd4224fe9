"""zstd over whole buffers, into memory that the caller gives: as an entropy coder alone, or as the compressor that it is.

Both make ordinary zstd frames. zstandard's public interface can't decode into given memory, nor keep zstd from looking for
repetitions, which in an exponent are chance: 1 % more bytes, half the speed of encoding, a sixth less of decoding. Its cffi
backend can both. Where that isn't at hand (no wheel with it, no cffi), the public interface does the same work slower.
"""

from __future__ import annotations

import contextlib
import threading
from importlib import import_module
from typing import Any, Final, Literal, Protocol

import zstandard

from ckptd.codec.hash import Buffer
from ckptd.errors import CorruptError

ffi: Any = None
lib: Any = None
with contextlib.suppress(ImportError):
    backend = import_module("zstandard.backend_cffi")  # its names are there to be used, but not declared
    ffi, lib = backend.ffi, backend.lib

Coder = Literal["entropy", "lz"]

# zstd makes a Huffman table for every block, and a block is as big as the window, up to 128 KiB. Smaller ones follow a changing
# distribution more closely (64 KiB: 0.05 % fewer bytes) but decode slower (3 %).
_WINDOW_LOG: Final = 17
_LEVEL: Final = 1


class Zstd(Protocol):
    """What one thread encodes and decodes with: zstd contexts are costly to make and must not be shared between threads."""

    def compress_into(self, coder: Coder, source: Buffer, room: memoryview) -> int | None:
        """Bytes written at the start of ``room``; None when they don't fit, and then ``room`` holds anything."""
        ...

    def decompress_into(self, stored: Buffer, destination: memoryview) -> None:
        """Fill ``destination`` with what one frame has. Never writes or allocates more. Raises CorruptError."""
        ...


class DirectZstd:
    """Through the cffi backend; zstd's own names."""

    def __init__(self) -> None:
        entropy = {
            lib.ZSTD_c_strategy: lib.ZSTD_fast,
            lib.ZSTD_c_targetLength: lib.ZSTD_TARGETLENGTH_MAX,  # a step so long that no repetition is looked for
            lib.ZSTD_c_literalCompressionMode: 1,  # Huffman nevertheless: without a word zstd drops it for long steps
            lib.ZSTD_c_windowLog: _WINDOW_LOG,
            lib.ZSTD_c_hashLog: lib.ZSTD_HASHLOG_MIN,
        }
        self._compressors = {"entropy": _context(entropy), "lz": _context({lib.ZSTD_c_compressionLevel: _LEVEL})}
        self._decompressor = ffi.gc(lib.ZSTD_createDCtx(), lib.ZSTD_freeDCtx)

    def compress_into(self, coder: Coder, source: Buffer, room: memoryview) -> int | None:
        """As `Zstd` says."""
        with ffi.from_buffer(room, require_writable=True) as target, ffi.from_buffer(source) as data:
            count: int = lib.ZSTD_compress2(self._compressors[coder], target, len(target), data, len(data))
        return None if lib.ZSTD_isError(count) else count

    def decompress_into(self, stored: Buffer, destination: memoryview) -> None:
        """As `Zstd` says."""
        # Let go of at once: an error's traceback would keep the memory exported.
        with ffi.from_buffer(destination, require_writable=True) as target, ffi.from_buffer(stored) as data:
            # One frame that says its size: what the public interface asks for, too.
            if lib.ZSTD_getFrameContentSize(data, len(data)) != len(target):
                raise CorruptError(f"a zstd frame doesn't say that it has {len(target)} bytes")
            if lib.ZSTD_findFrameCompressedSize(data, len(data)) != len(data):
                raise CorruptError(f"{len(data)} bytes aren't one zstd frame")
            if lib.ZSTD_decompressDCtx(self._decompressor, target, len(target), data, len(data)) != len(target):
                raise CorruptError(f"a zstd frame doesn't decode to {len(target)} bytes")


def _context(parameters: dict[int, int]) -> Any:
    context = ffi.gc(lib.ZSTD_createCCtx(), lib.ZSTD_freeCCtx)
    for name, value in parameters.items():
        if lib.ZSTD_isError(lib.ZSTD_CCtx_setParameter(context, name, value)):
            raise AssertionError(f"zstd {zstandard.ZSTD_VERSION} refuses parameter {name}={value}")
    return context


class PublicZstd:
    """Through the public interface."""

    def __init__(self) -> None:
        # With a target length zstd would drop Huffman coding here; so it looks for repetitions of 7 bytes, its most.
        entropy = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, window_log=_WINDOW_LOG, hash_log=6, min_match=7, write_content_size=True
        )
        self._compressors = {
            "entropy": zstandard.ZstdCompressor(compression_params=entropy),
            "lz": zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True),
        }
        self._decompressor = zstandard.ZstdDecompressor()

    def compress_into(self, coder: Coder, source: Buffer, room: memoryview) -> int | None:
        """As `Zstd` says."""
        stored = self._compressors[coder].compress(source)
        if len(stored) > room.nbytes:
            return None
        room[: len(stored)] = stored
        return len(stored)

    def decompress_into(self, stored: Buffer, destination: memoryview) -> None:
        """As `Zstd` says."""
        try:
            # It would allocate what the frame says.
            if zstandard.get_frame_parameters(stored).content_size != destination.nbytes:
                raise CorruptError(f"a zstd frame doesn't say that it has {destination.nbytes} bytes")
            body = self._decompressor.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptError(f"a zstd frame doesn't decode: {error}") from None
        if len(body) != destination.nbytes:
            raise CorruptError(f"a zstd frame has {len(body)} bytes instead of {destination.nbytes}")
        destination[:] = body


DIRECT: Final = lib is not None


class Contexts(threading.local):
    """One `Zstd` for each thread that asks."""

    def __init__(self) -> None:
        self.zstd: Zstd = DirectZstd() if DIRECT else PublicZstd()
