"""How small a trained state becomes, beside the entropy of its byte planes, zipnn, and zstd on all bytes. Nothing is timed.

The bound is the order-0 entropy of the best plane split, frame by frame: bytes of the elements as they are or rotated by a bit,
whichever sums up to less. A coder that knows of nothing but how frequent a byte is in its plane can't do better, but for what
differs within a frame.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.codecs import Codec, Framed, ckptd, framed, zipnn, zstd
from benchmarks.result import OURS, Result, at_most
from benchmarks.run import alone
from benchmarks.state import State, trained


def measure(rounds: int) -> list[Result]:
    """The same in every round, so there is one."""
    first, _ = trained()
    return [
        _stored("stored_fp32", "weights and Adam's moments, fp32", first.fp32()),
        _stored("stored_bf16", "weights, bf16", first.bf16()),
    ]


def _stored(figure: str, what: str, state: State) -> Result:
    dtype = next(iter(state.values())).dtype
    frames = framed(state)
    sizes = {OURS: _checked(frames)} | {peer.name: _whole(peer, state) for peer in (zipnn(dtype), zstd())}
    sizes["bound"] = sum(_bound_bytes(frame, dtype) for frame in frames.raw)
    share = {name: size / frames.raw_bytes for name, size in sizes.items()}
    bound, ours = share.pop("bound"), share.pop(OURS)
    notes = {"state_bytes": frames.raw_bytes, "frames": len(frames.raw), "bit_equal_after_decoding": True}
    result = Result(figure, f"stored ÷ raw bytes: {what}", "ratio", "lower", ours, bound, share, 1, notes=notes)
    return result.holding(at_most("÷ entropy bound", ours / bound, 1.005), at_most("÷ zipnn", ours / share["zipnn"], 1.005))


def _checked(frames: Framed) -> int:
    """Bytes that ckptd stores, every frame decoded again and compared."""
    total, codec = 0, ckptd(frames.dtype)
    for frame in frames.raw:
        stored = codec.encode(bytearray(frame))
        total += len(stored)
        if codec.decode(stored) != frame:
            raise AssertionError("a frame came back with other bytes")
    return total


def _whole(peer: Codec, state: State) -> int:
    return sum(len(peer.encode(bytearray(tensor.view(-1).view(torch.uint8).numpy()))) for tensor in state.values())


def _bound_bytes(frame: memoryview, dtype: torch.dtype) -> float:
    elements = np.frombuffer(frame, f"<u{dtype.itemsize}")
    rotated = elements << 1 | elements >> (8 * dtype.itemsize - 1)
    return min(
        sum(_entropy_bytes(split.view(np.uint8)[i :: dtype.itemsize]) for i in range(dtype.itemsize))
        for split in (elements, rotated)
    )


def _entropy_bytes(plane: np.ndarray) -> float:
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(plane) / counts)).sum() / 8)


if __name__ == "__main__":
    alone(measure, rounds=1)
