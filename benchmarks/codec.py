"""What encoding and decoding cost: core-seconds per GB on one thread, of trained fp32 and bf16 tensors, beside zipnn and zstd.

zipnn and zstd get each tensor whole, ckptd the frames that the daemon would cut. All get their bytes from the cache, as they
have just been copied, and write to it: ckptd into buffers that it gets again for each frame, as in the daemon, the others into
memory that is made anew, of what they have just freed. Copying the same bytes is the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.codecs import Codec, ckptd, framed, zipnn, zstd
from benchmarks.result import Result, at_most, from_rounds
from benchmarks.rounds import Rounds, interleave
from benchmarks.run import alone
from benchmarks.state import State, trained
from ckptd.codec.frames import BUILD

_FP32_BYTES = 240_000_000  # of weights and both moments, as they stand together
_BF16_BYTES = 120_000_000
_BARS = {"encode_fp32": 1 / 3, "encode_bf16": 0.7, "decode_fp32": 0.75, "decode_bf16": 0.75}


def measure(rounds: int) -> list[Result]:
    """Encoding and decoding take turns, for each contender, tensor by tensor."""
    first, _ = trained()
    states = {"fp32": _some(first.fp32(), _FP32_BYTES), "bf16": _some(first.bf16(), _BF16_BYTES)}
    results = []
    for name, state in states.items():
        dtype = next(iter(state.values())).dtype
        tensors = [memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()) for tensor in state.values()]
        frames = framed(state)
        contenders = [
            _Copy(frames.raw),
            _Coding(ckptd(frames.dtype), frames.raw),
            _Coding(zipnn(dtype), tensors),
            _Coding(zstd(), tensors),
        ]
        decoding: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        encoding = interleave({each.name: _both(each, decoding[each.name]) for each in contenders}, rounds, warm_up=1)
        decoded = Rounds({key: all_[0] for key, all_ in decoding.items()}, {key: all_[1:] for key, all_ in decoding.items()})
        raw_bytes = sum(tensor.nbytes for tensor in state.values())
        for verb, taken in (("encode", encoding), ("decode", decoded)):
            per_gb = taken.map(lambda seconds, gigabytes=raw_bytes / 1e9: seconds / gigabytes)
            results.append(_result(f"{verb}_{name}", f"core-seconds to {verb} a GB of {name}", per_gb, raw_bytes, len(state)))
    return results


def _result(kind: str, what: str, rounds: Rounds, raw_bytes: int, tensors: int) -> Result:
    notes = {"state_bytes": raw_bytes, "tensors": tensors, "build": BUILD, "bit_equal_after_decoding": True}
    result = from_rounds(f"codec_{kind}", what, "s/GB", rounds, "memcpy", notes=notes)
    return result.holding(at_most("÷ zipnn", result.ckptd / result.peers["zipnn"], _BARS[kind]))


def _some(state: State, total_bytes: int) -> State:
    """The first tensors, up to ``total_bytes``."""
    found: State = {}
    for name, tensor in state.items():
        if sum(other.nbytes for other in found.values()) + tensor.nbytes > total_bytes:
            break
        found[name] = tensor.clone()  # read from its file now, not while time is taken
    return found


def _both(contender: _Copy | _Coding, decoding: list[float]) -> Callable[[int], float]:
    def turn(_: int) -> float:
        encode_seconds, decode_seconds = contender.turn()
        decoding.append(decode_seconds)
        return encode_seconds

    return turn


@dataclass
class _Timer:
    """CPU seconds of all threads of this process, while it is entered."""

    seconds: float = 0.0
    _begun: float = field(default=0.0)

    def __enter__(self) -> None:
        self._begun = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._begun


class _Coding:
    def __init__(self, codec: Codec, pieces: Sequence[memoryview]) -> None:
        self.name = codec.name
        self._codec, self._pieces = codec, pieces

    def turn(self) -> tuple[float, float]:
        """Seconds to encode and to decode."""
        encoding, decoding = _Timer(), _Timer()
        for piece in self._pieces:
            raw = bytearray(piece)
            copy = bytearray(raw)
            with encoding:
                stored = self._codec.encode(copy)
            with decoding:
                back = self._codec.decode(stored)
            if bytes(back) != raw:
                raise AssertionError(f"{self.name} gave back other bytes")
        return encoding.seconds, decoding.seconds


class _Copy:
    name = "memcpy"

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces, self._room = pieces, bytearray(max(piece.nbytes for piece in pieces))

    def turn(self) -> tuple[float, float]:
        """Seconds to copy, there and back."""
        timer = _Timer()
        for piece in self._pieces:
            raw = bytearray(piece)
            with timer:
                self._room[: piece.nbytes] = raw
        return timer.seconds, timer.seconds


if __name__ == "__main__":
    alone(measure, rounds=21)
