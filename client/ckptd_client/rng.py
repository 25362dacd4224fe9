"""Random number generators: torch's on CPU and accelerator, Python's, and numpy's legacy one where numpy is in use."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import TYPE_CHECKING, Any

from ckptd_client import devices
from ckptd_client.errors import ProtocolError
from ckptd_client.typed import pack_words, unpack_words

if TYPE_CHECKING:
    import torch

FQN = "ckptd.rng"


def capture() -> dict[str, Any]:
    """The states as plain data."""
    import torch

    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"torch": _body(torch.get_rng_state()), "python": (version, pack_words(words), gauss)}
    on_device = devices.rng_state()
    if on_device is not None:
        state["device"] = (on_device[0], _body(on_device[1]))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, key, at, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = (kind, key.tobytes(), int(at), int(has_gauss), float(cached))
    return state


def restore(state: Any) -> bool:
    """Set what `capture` took; False when the device's state couldn't be set because the device is of another kind.

    Raises ProtocolError when ``state`` is not what `capture` makes.
    """
    import torch

    try:
        on_device = state.get("device")
        exact = on_device is None or devices.set_rng_state(on_device[0], _tensor(on_device[1]))
        if "numpy" in state:
            import numpy

            kind, key, at, has_gauss, cached = state["numpy"]
            numpy.random.set_state((kind, numpy.frombuffer(key, numpy.uint32), at, has_gauss, cached))
        version, words, gauss = state["python"]
        random.setstate((version, unpack_words(words), gauss))
        torch.set_rng_state(_tensor(state["torch"]))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise ProtocolError(f"the stored RNG state doesn't fit this environment error={error}") from error
    return exact


def derive(seed: int, step: int, rank: int) -> None:
    """Seed all generators from (seed, step, rank): for a world that is not the one that was saved."""
    import torch

    def draw(name: str, size: int) -> int:
        text = f"ckptd rng {seed} {step} {rank} {name}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")

    torch.manual_seed(draw("torch", 8) >> 1)  # its seeds are signed
    random.seed(draw("python", 8))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(draw("numpy", 4))


def _body(state: torch.Tensor) -> bytes:
    # through a bytearray, because numpy may be absent
    import torch

    body = bytearray(state.numel())
    torch.frombuffer(body, dtype=torch.uint8).copy_(state)
    return bytes(body)


def _tensor(body: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(body), dtype=torch.uint8).clone()
