"""Who may import what, where the names of modules are not enough for import-linter (ARCHITECTURE 4)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What daemon and trainer share. Never torch: the daemon's environment has none.
SHARED = {"arena", "errors", "messages", "packing", "wire"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; 'a.b' for 'from a import b' as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def modules(top: Path) -> list[Path]:
    return [path for path in sorted(top.rglob("*.py")) if "_pb2" not in path.name]


def test_the_daemon_takes_only_the_shared_modules_of_the_client() -> None:
    for path in modules(ROOT / "ckptd"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] != "torch", path
            assert parts[0] != "ckptd_client" or parts[1] in SHARED, f"{path} imports {name}"


def test_the_shared_modules_import_no_torch_and_nothing_that_might() -> None:
    client = ROOT / "client" / "ckptd_client"
    for module in SHARED:
        alone, package = client / f"{module}.py", client / module
        paths = [alone] if alone.exists() else modules(package)
        assert paths, f"there is no {module}"
        for path in paths:
            for name in imported(path):
                top = name.split(".")[0]
                assert top in {*sys.stdlib_module_names, "msgpack", "ckptd_client"}, f"{path} imports {name}"
                assert top != "ckptd_client" or name.split(".")[1] in SHARED, f"{path} imports {name}"


@pytest.mark.parametrize("module", ["ckptd.store.open", "ckptd.store.s3", "ckptd.cli"])
def test_the_daemons_code_runs_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}; assert sys.modules['torch'] is None"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
