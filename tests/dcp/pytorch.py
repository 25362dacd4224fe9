"""PyTorch's own tests of DCP, over its file system and over ckptd: `python -m tests.dcp.pytorch PATH… [pytest's arguments]`.

PATHs are test/distributed/checkpoint of a PyTorch checkout that fits the torch installed, or files of it. Both runs are the
same but for what `tests.dcp.plugged` puts in. Ends with 1 when a test passes over files only, and isn't among the `KNOWN`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from ckptd.demo.cluster import Cluster, Plan
from tests.dcp.backends import JOB

_ROOT: Final = Path(__file__).parents[2]
_EARLY: Final = """import sys
if not any("resource_tracker" in argument for argument in sys.orig_argv):
    try:
        import tests.dcp.plugged
    except Exception as error:  # else Python says so and goes on, with torch's file system
        sys.exit(f"nothing is plugged in: {type(error).__name__}: {error}")
"""
KNOWN: Final = {
    "TestDCPCompatbility.test_storage_meta": "compares the checkpoint's id with the path that it gave; ours is JOB/STEP",
    "TestE2ESaveAndLoad.test_overwrite": "wants FileSystemWriter(overwrite=False) to refuse; a step of ours may be saved again",
    "TestFSSpec.test_overwrite": "saves with FsspecWriter, which stays as it is, and loads by path alone",
}
"""Tests that are about files, and what of them."""


def main(arguments: list[str]) -> int:
    """Run both and compare; the exit code."""
    if not arguments or importlib.util.find_spec("expecttest") is None:
        print(__doc__, "It needs the package expecttest (PYTHONPATH is passed on).", sep="\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="ckptd-pytorch-") as name:
        directory = Path(name)
        (directory / "early").mkdir()
        (directory / "early" / "sitecustomize.py").write_text(_EARLY)
        cluster = Cluster(Plan(JOB, str(directory / "store"), Path(__file__), []), directory)
        try:
            cluster.start_coordinator()
            node = cluster.node("a")
            node.start_daemon()
            path = os.pathsep.join((str(directory / "early"), str(_ROOT), os.environ.get("PYTHONPATH", "")))
            files, ours = (
                _run(arguments, {**node.environment, "PYTHONPATH": path, "CKPTD_PLUG": kind}, directory / f"{kind}.xml")
                for kind in ("files", "ckptd")
            )
        finally:
            cluster.close()
    return _compare(files, ours)


def _run(arguments: list[str], environment: dict[str, str], report: Path) -> dict[str, tuple[str, str]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--junit-xml={report}"]
    subprocess.run([*command, *arguments], env=environment, check=False)
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                lines = [line for line in (child.text or "").splitlines() if line.startswith("E ")]
                why = next((line for line in lines if "Error" in line and "exit" not in line), child.get("message", ""))
        found[f"{case.get('classname')}.{case.get('name')}"] = outcome, why
    return found


def _compare(files: dict[str, tuple[str, str]], ours: dict[str, tuple[str, str]]) -> int:
    missing = ("missing", "")
    pairs = {name: (files.get(name, missing), ours.get(name, missing)) for name in {**files, **ours}}
    unknown = 0
    for name, (theirs, mine) in sorted(pairs.items()):
        if theirs[0] != mine[0]:
            known = next((why for test, why in KNOWN.items() if name.endswith(f".{test}")), None)
            unknown += known is None and theirs[0] == "passed"
            print(f"{name}: {theirs[0]} over files, {mine[0]} over ckptd: {known or mine[1][:300]}")
    for (theirs_, mine_), count in sorted(Counter((theirs[0], mine[0]) for theirs, mine in pairs.values()).items()):
        print(f"{count} {theirs_} over files, {mine_} over ckptd")
    return 1 if unknown or not pairs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
