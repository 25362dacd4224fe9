"""Imports beside the rest of the world: other ranks' shards, a running coordinator, files that vanish, little memory."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptd.interchange.foreign import LocalFiles
from ckptd.store.open import open_files
from tests.interchange import sharded_dcp
from tests.interchange.cli import ckptd
from tests.interchange.saved import JOB, load, random_tensor, same
from tests.warm import together

CKPTD = Path(sys.executable).with_name("ckptd")
MEGA = 1 << 20


def test_shards_of_two_ranks(tmp_path: Path) -> None:
    together(sharded_dcp.main, (str(tmp_path / "meet"), str(tmp_path / "in")), 2)
    assert len(list((tmp_path / "in").glob("*.distcp"))) == 2
    ckptd("import", tmp_path / "in", "--job", JOB, "--store", tmp_path / "store", "--step", 11)
    loaded, _ = load(tmp_path / "store")
    same({name: sharded_dcp.whole(name) for name in sorted(sharded_dcp.SHAPES)}, dict(sorted(loaded["model"].items())))
    same(loaded["plain"], torch.ones(3))
    assert (loaded["step"], loaded["groups"]) == (11, [{"lr": 0.5, "params": [0, 1]}])


def test_a_job_with_a_coordinator_is_left_alone(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "in.pt")
    words = [CKPTD, "coordinator", "--job", JOB, "--store", str(tmp_path / "store"), "--bind", "127.0.0.1:0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert "ready" in running.stdout.readline()
            # It says where it is right after it is ready: both refuse, by asking it or by what it has written since.
            while not (tmp_path / "store" / JOB / "LEADER").exists():
                assert running.poll() is None
            said = ckptd("import", tmp_path / "in.pt", "--job", JOB, "--store", tmp_path / "store", code=3).stderr
        finally:
            running.terminate()
    assert "stop its coordinator first" in said
    ckptd("import", tmp_path / "in.pt", "--job", JOB, "--store", tmp_path / "store")
    same({"w": torch.ones(2)}, load(tmp_path / "store")[0])


def test_a_file_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.pt"
    torch.save({"a": random_tensor("float32", 20 * MEGA), "b": random_tensor("float32", 20 * MEGA, seed=1)}, path)
    read = LocalFiles.read

    async def shrinking(self: LocalFiles, name: str, start: int, end: int) -> bytes:
        body = await read(self, name, start, end)
        if end - start > MEGA:  # the first tensor's bytes are read: take the second one's away
            os.truncate(path, 100 * MEGA)
        return body

    monkeypatch.setattr(LocalFiles, "read", shrinking)
    said = ckptd("import", path, "--job", JOB, "--store", tmp_path / "store", code=1).stderr
    assert "cut off" in said
    assert list((tmp_path / "store").rglob("*.seg"))  # the first batch was stored …
    assert '"checkpoints": []' in ckptd("ls", "--job", JOB, "--store", tmp_path / "store", "--json").stdout
    settings = tmp_path / "ckptd.toml"
    settings.write_text("[coordinator]\ngrace_seconds = 0\n")
    ckptd("gc", "--job", JOB, "--store", tmp_path / "store", "--config", settings)
    assert not list((tmp_path / "store").rglob("*.seg"))  # … and is nobody's


@pytest.mark.parametrize(("server", "bucket", "kind"), [("minio", "minio_url", "dcp"), ("azurite", "azure_url", "torch")])
def test_sources_at_a_url(tmp_path: Path, request: pytest.FixtureRequest, server: str, bucket: str, kind: str) -> None:
    saved = {"w": random_tensor("bfloat16", 300, 200), "n": {"lr": 0.1, "t": torch.arange(5)}}
    url, options = request.getfixturevalue(bucket), request.getfixturevalue(server).storage_options
    if kind == "torch":
        torch.save(saved, tmp_path / "in.pt")
    else:
        dcp.save(dict(saved), checkpoint_id=tmp_path / "in", no_dist=True)
    store = open_files(f"{url}/their files", options)
    for path in [tmp_path / "in.pt"] if kind == "torch" else (tmp_path / "in").iterdir():
        asyncio.run(store.put(f"{path.relative_to(tmp_path)}", path.read_bytes()))
    settings = tmp_path / "ckptd.toml"
    settings.write_text("[store.storage_options]\n" + toml(options))
    source = f"{url}/their files/in" + (".pt" if kind == "torch" else "")
    ckptd("import", source, "--job", JOB, "--store", f"{url}/ours", "--config", settings)
    form = ("--format", "torch", "-o", tmp_path / "out.pt")
    ckptd("export", 0, "--job", JOB, "--store", f"{url}/ours", "--config", settings, *form)
    same(saved, torch.load(tmp_path / "out.pt", weights_only=True))


def toml(options: Mapping[str, object]) -> str:
    """A table's lines, with tables in line."""
    return "".join(f"{name} = {inline(value)}\n" for name, value in options.items())


def inline(value: object) -> str:
    """TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {inline(part)}" for name, part in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: a slow disk would be all that is measured."""
    directory = Path(mkdtemp(prefix="ckptd-interchange-", dir="/dev/shm"))
    yield directory
    rmtree(directory)


def peak(*words: object) -> int:
    """Most resident bytes of `ckptd` with these words, as a process of its own."""
    code = "import os, resource, subprocess, sys; done = subprocess.run(sys.argv[1:]).returncode"
    code += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done)"
    done = subprocess.run([sys.executable, "-c", code, CKPTD, *map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.parametrize("form", ["torch", "dcp", "safetensors"])
def test_memory_is_bounded(memory: Path, form: str) -> None:
    nbytes = 600 * MEGA
    saved = {"big": random_tensor("uint8", nbytes * 2 // 3).view(torch.float32), "turned": torch.empty(0)}
    saved["turned"] = random_tensor("float32", 5000, nbytes // 3 // 5000 // 4, seed=1).t()
    torch.save(saved, memory / "in.pt")
    del saved
    words = ("--job", JOB, "--store", memory / "store")
    idle = peak("--help")
    importing = peak("import", memory / "in.pt", *words) - idle
    (memory / "in.pt").unlink()
    exporting = peak("export", 0, *words, "--format", form, "-o", memory / "out") - idle
    print(f"{form}: import {importing // MEGA} MiB, export {exporting // MEGA} MiB over {idle // MEGA} MiB")
    assert importing < nbytes / 3
    assert exporting < nbytes / 3
    rmtree(memory / "store")
    assert peak("import", memory / "out", *words) - idle < nbytes / 3
