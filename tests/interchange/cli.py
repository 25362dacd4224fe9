"""`ckptd` as its user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CKPTD = Path(sys.executable).with_name("ckptd")


def ckptd(*words: object, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end; asserts its exit code, and that it never shows a traceback."""
    done = subprocess.run([CKPTD, *map(str, words)], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done
