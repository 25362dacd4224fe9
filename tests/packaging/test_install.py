"""What an installation brings along: no torch where the daemon runs, and no other torch than its own where the trainer runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(sysconfig.get_config_var("CC").split()[0])
VERSION = "2.7.0a0+nv25.4"  # as vendors name theirs: a version that no package registry has


@pytest.fixture(scope="module")
def uv() -> str:
    """The uv that `make setup` installs."""
    own = ROOT / ".tools" / "uv-venv" / "bin" / "uv"
    if not own.exists():
        subprocess.run(["make", "-C", str(ROOT), str(own.relative_to(ROOT)), f"PYTHON={sys.executable}"], check=True)
    return str(own)


@pytest.fixture(scope="module")
def wheels(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, built as they are shipped."""
    directory = tmp_path_factory.mktemp("wheels")
    command = [uv, "build", "--quiet", "--wheel", "--all-packages", "--python", sys.executable, "--out-dir", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory


def environment(uv: str, directory: Path) -> Path:
    """A new virtual environment with nothing in it; its python."""
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(directory)], check=True)
    return directory / "bin" / "python"


def install(uv: str, python: Path, wheels: Path, name: str) -> None:
    """As `pip install NAME` does, with our wheels."""
    [wheel] = wheels.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
    command = [uv, "pip", "install", "--quiet", "--python", str(python), "--find-links", str(wheels), str(wheel)]
    subprocess.run(command, check=True)


def installed(uv: str, python: Path) -> dict[str, str]:
    """Version by name."""
    done = subprocess.run([uv, "pip", "freeze", "--python", str(python)], check=True, capture_output=True, text=True)
    return {line.partition("==")[0].partition(" @ ")[0]: line for line in done.stdout.splitlines()}


def digests(directory: Path) -> dict[str, str]:
    """sha256 by path."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_ckptd_in_an_empty_environment_brings_no_torch(uv: str, wheels: Path, tmp_path: Path) -> None:
    python = environment(uv, tmp_path / "venv")
    install(uv, python, wheels, "ckptd")
    names = installed(uv, python)
    assert {"ckptd", "ckptd-client"} <= names.keys()
    assert not [name for name in names if "torch" in name or "nvidia" in name or "triton" in name]
    for arguments in (["ckptd", "--help"], ["ckptd", "ls", "--store", str(tmp_path / "store"), "--job", "job"]):
        done = subprocess.run([str(python.with_name(arguments[0])), *arguments[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "no committed checkpoint" in done.stdout
    assert codec_of(python).startswith("planes in C" if COMPILER else "planes with NumPy")
    subprocess.run([str(python), "-c", "import ckptd_client; ckptd_client.connect"], check=True)  # and it needs none for that
    assert move_of(python) == ("copy" if COMPILER else "memmove")


def codec_of(python: Path) -> str:
    """What the installed ckptd says of its codec, having used it."""
    code = """
from ckptd.codec.frames import BUILD, decode_into, encode_into
raw, room, back = memoryview(bytes(range(4)) * 1000), memoryview(bytearray(4000)), memoryview(bytearray(4000))
codec_id, count = encode_into(raw, "float32", "planes", room)
decode_into(codec_id, room[:count], back)
assert codec_id == 1 and back == raw
print(BUILD)
"""
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd=python.parent).stdout


def move_of(python: Path) -> str:
    """What the installed client copies big tensors with, having used it."""
    code = """
import ctypes
from ckptd_client.moving import _move
raw, room = ctypes.create_string_buffer(b"abc" * 200_000), ctypes.create_string_buffer(600_001)
_move(ctypes.addressof(room), ctypes.addressof(raw), 600_001)
assert room.raw == raw.raw
print("memmove" if isinstance(_move, ctypes._CFuncPtr) else _move.__name__)
"""
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd=python.parent)
    return done.stdout.strip()


def test_without_a_compiler_ckptd_installs_and_works(uv: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "ckptd", source / "ckptd", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "client", source / "client", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    )
    without = {**os.environ, "CC": "/nonexistent/cc"}
    command = [
        uv,
        "build",
        "--quiet",
        "--wheel",
        "--all-packages",
        "--python",
        sys.executable,
        "--out-dir",
        str(tmp_path / "wheels"),
    ]
    subprocess.run(command, cwd=source, check=True, env=without)
    python = environment(uv, tmp_path / "venv")
    install(uv, python, tmp_path / "wheels", "ckptd")
    assert codec_of(python).startswith("planes with NumPy") and move_of(python) == "memmove"


def test_ckptd_client_beside_a_vendors_torch_does_not_touch_it(uv: str, wheels: Path, tmp_path: Path) -> None:
    python = environment(uv, tmp_path / "venv")
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text(f"__version__ = {VERSION!r}\n")
    info = site / f"torch-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}\n")
    (info / "INSTALLER").write_text("vendor\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in ("torch/__init__.py", f"{info.name}/METADATA")))
    before = {**digests(site / "torch"), **digests(info)}

    install(uv, python, wheels, "ckptd-client")

    assert {**digests(site / "torch"), **digests(info)} == before
    assert installed(uv, python).keys() == {"torch", "ckptd-client", "msgpack"}
    done = subprocess.run(
        [str(python), "-c", "import ckptd_client.run, torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == VERSION
    [entry] = site.glob("ckptd_client-*.dist-info/entry_points.txt")
    assert "ckptd_client.rendezvous:handler" in entry.read_text()
