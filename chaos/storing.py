"""Trials of a bad way to the store: toxiproxy's toxics, and the fault proxy's wrong answers."""

from __future__ import annotations

import random
import time
from typing import Final

from chaos.killing import kill_trainer
from chaos.s3proxy import READS, WRITES, Fault, Kind, Verb
from chaos.scene import Scene, until
from chaos.toxiproxy import TOXICS
from chaos.trial import Play, Trial

STEPS: Final = 300  # that training does meanwhile: three seconds
FAULTS: Final = 5
FAULT_SECONDS: Final = 60.0


def _toxic(kind: str) -> Play:
    def play(scene: Scene, rng: random.Random) -> int:
        """Training goes on all the while; with a store that is only slow, so do commits."""
        assert scene.toxiproxy is not None
        with scene.toxiproxy.toxic(kind):
            scene.wait_step(time.monotonic(), STEPS // 4)
            if kind in ("latency", "bandwidth"):
                scene.wait_commit(scene.newest_commit())
        return 0

    return play


def _writes(kind: Kind, verbs: frozenset[Verb], chance: float) -> Play:
    def play(scene: Scene, rng: random.Random) -> int:
        """Training goes on, whatever becomes of the snapshots."""
        assert scene.proxy is not None
        with scene.proxy.fault(Fault(kind, verbs, chance=chance)) as fault:
            scene.wait_step(time.monotonic(), STEPS // 4)
            until(f"{FAULTS} times {kind}", lambda: fault.done >= FAULTS, FAULT_SECONDS)
        return 0

    return play


def _reads(kind: Kind, key: str) -> Play:
    def play(scene: Scene, rng: random.Random) -> int:
        """A world restores, and one read goes wrong: that is no reason to put the checkpoint aside."""
        assert scene.proxy is not None
        with scene.proxy.fault(Fault(kind, frozenset({"GET"}), key=key, limit=1)) as fault:
            restored = len(scene.restored())
            kill_trainer(scene, rng)
            until(f"a {kind} answer", lambda: fault.done > 0, FAULT_SECONDS)
            until("workers that restore", lambda: len(scene.restored()) > restored, FAULT_SECONDS)
        return 1

    return play


BAD_WAYS: Final = [Trial(f"toxic {kind}", _toxic(kind), quiet=True) for kind in TOXICS]

BAD_ANSWERS: Final = [
    Trial("S3 says 503", _writes("503", READS | WRITES, 0.3), quiet=True),
    Trial("S3 says 500", _writes("500", READS | WRITES, 0.3), quiet=True),
    Trial("S3 says 409 to creates", _writes("409", frozenset({"CREATE"}), 0.6), quiet=True),
    Trial("S3's replies to writes lost", _writes("lost", WRITES, 0.3), quiet=True),
    Trial("S3 credentials expired", _writes("expired", READS | WRITES, 1.0), quiet=True),
    Trial("S3 bodies cut", _reads("cut", "/data/|/manifest/|/layout/")),
    Trial("S3 bodies wrong", _reads("flip", "/data/")),
]
