"""Damaged and hostile files: a clear error, exit code 1, nothing run, nothing written to the store."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckptd.errors import InterchangeError
from ckptd.interchange import pickles
from ckptd.interchange.foreign import check_name
from ckptd.interchange.read_torch import ALLOWED
from tests.interchange.cli import ckptd
from tests.interchange.saved import JOB


def refused(root: Path, source: Path, *words: str) -> None:
    said = ckptd("import", source, "--job", JOB, "--store", root / "store", code=1).stderr
    for word in words:
        assert word in said, said
    assert not (root / "store").exists()


def rezipped(path: Path, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> None:
    """Write a torch.save file anew, each entry as ``change`` returns it."""
    body = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(body, "w", method) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
    path.write_bytes(body.getvalue())


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def torch_file(tmp_path: Path) -> Path:
    torch.save({"w": torch.arange(1000.0), "n": {"b": torch.ones(3, 4)}}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def dcp_dir(tmp_path: Path) -> Path:
    dcp.save({"w": torch.arange(1000.0), "n": {"b": torch.ones(3, 4)}, "k": 3}, checkpoint_id=tmp_path / "in", no_dist=True)
    return tmp_path / "in"


def test_a_torch_file_that_would_run_something(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Evil(tmp_path / "ran")}, tmp_path / "in.pt")
    refused(tmp_path, tmp_path / "in.pt", "posix.system", "nothing of it was run")
    assert not (tmp_path / "ran").exists()


def test_metadata_that_would_run_something(tmp_path: Path) -> None:
    (dcp_dir(tmp_path) / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refused(tmp_path, tmp_path / "in", "posix.system", "nothing of it was run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_runs_anything(tmp_path: Path, protocol: int) -> None:
    body = pickle.dumps([Evil(tmp_path / "ran")], protocol)
    with pytest.raises(InterchangeError):
        pickles.load(body, "it", ALLOWED)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cposix\nsystem\n(X\x02\x00\x00\x00lstR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"ctorch._utils\n_rebuild_tensor_v2\nctorch._utils\n_rebuild_tensor_v2\nR.",
        b"(iposix\nsystem\n.",
        b"\x82\x01.",
        b"}]K\x01s.",  # an unhashable key
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a text of 2^63 bytes
        b"\x8b\xff\xff\xff\x7f\x01.",
        b"X\xff\xff\xff\xffabc.",
        b"h\x05.",
        b"j\xff\xff\xff\xff.",
        b"t.",
        b"0.",
        b"N",
        b"",
        b"(N.",
        b"NN.",
        b"]q\x00(h\x00h\x00h\x00eh\x00b.",
    ],
)
def test_pickles_that_are_none(body: bytes) -> None:
    with pytest.raises(InterchangeError):
        pickles.load(body, "it", ALLOWED)


def test_changed_pickles_give_a_value_or_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(torch_file(tmp_path)) as archive:
        sound = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    chance = random.Random(5)
    for _ in range(3000):
        body = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            pickles.load(bytes(body[: chance.randint(0, 2 * len(body))]), "it", ALLOWED, lambda _: None)
        except InterchangeError:
            pass


def test_a_value_that_grows_without_bound(tmp_path: Path) -> None:
    """Lists of ten times the same list, fifteen deep."""
    rows: list[Any] = [1] * 10
    for _ in range(15):
        rows = [rows] * 10
    torch.save({"w": torch.ones(2), "x": rows}, tmp_path / "in.pt")
    refused(tmp_path, tmp_path / "in.pt", "values")


def test_a_list_in_itself(tmp_path: Path) -> None:
    rows: list[Any] = []
    rows.append(rows)
    torch.save({"x": rows}, tmp_path / "in.pt")
    refused(tmp_path, tmp_path / "in.pt", "nested deeper")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torch_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    path = torch_file(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(tmp_path, path)


def test_a_compressed_entry(tmp_path: Path) -> None:
    path = torch_file(tmp_path)
    rezipped(path, lambda _name, body: body, zipfile.ZIP_DEFLATED)
    refused(tmp_path, path, "compressed")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda name, body: None if name.endswith("data/0") else body, "missing"),
        (lambda name, body: body[:-4] if name.endswith("data/0") else body, "not as many"),
        (lambda name, body: None if name.endswith("data.pkl") else body, "no data.pkl"),
        (lambda name, body: b"big" if name.endswith("byteorder") else body, "big-endian"),
        (lambda name, body: body.replace(struct.pack("<H", 1000), struct.pack("<H", 999)), "bytes="),
    ],
)
def test_a_torch_file_that_contradicts_itself(tmp_path: Path, change: Callable[[str, bytes], bytes | None], word: str) -> None:
    path = torch_file(tmp_path)
    rezipped(path, change)
    refused(tmp_path, path, word)


def test_an_expanded_tensor(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1).expand(1 << 40)}, tmp_path / "in.pt")
    refused(tmp_path, tmp_path / "in.pt", "expanded")


@pytest.mark.parametrize(
    "value", [{1, 2}, 3j, torch.nn.Linear(2, 2), torch.ones(2).to_sparse(), torch.device("cpu"), bytearray(2)]
)
def test_values_without_a_stored_form(tmp_path: Path, value: Any) -> None:
    torch.save({"w": torch.ones(2), "x": value}, tmp_path / "in.pt")
    refused(tmp_path, tmp_path / "in.pt")


def test_old_torch_files_and_others(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path, tmp_path / "old.pt", "neither safetensors nor a zip")
    torch.save(torch.ones(2), tmp_path / "bare.pt")
    refused(tmp_path, tmp_path / "bare.pt", "not a dict")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "program.pt"))
    refused(tmp_path, tmp_path / "program.pt")
    (tmp_path / "dir").mkdir()
    refused(tmp_path, tmp_path / "dir", "no checkpoint of a known kind")
    refused(tmp_path, tmp_path / "nothing", "there is no file")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path, tmp_path / "fifo", "there is no file")


def metadata_of(directory: Path, change: Callable[[Any], None]) -> None:
    """Write .metadata anew after ``change``."""
    with (directory / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


def moved(metadata: Any, **to: Any) -> None:
    for info in metadata.storage_data.values():
        for name, value in to.items():
            setattr(info, name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: moved(m, relative_path="../secret"), ["leads out of the directory"]),
        (lambda m: moved(m, relative_path="/etc/passwd"), ["leads out of the directory"]),
        (lambda m: moved(m, relative_path="link"), ["leads out of the directory"]),
        (lambda m: moved(m, relative_path="gone"), ["missing", "gone"]),
        (lambda m: moved(m, offset=1 << 50), ["cut off"]),
        (lambda m: moved(m, length=-1), ["unknown way"]),
        (lambda m: moved(m, transform_descriptors=["zstd"]), ["extension"]),
        (lambda m: m.storage_data.clear(), ["doesn't have all"]),
        (lambda m: m.state_dict_metadata["w"].chunks.clear(), ["each of its elements once"]),
        (
            lambda m: m.state_dict_metadata["w"].chunks.append(m.state_dict_metadata["w"].chunks[0]),
            ["each of its elements once"],
        ),
        (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([1 << 50])), ["each of its elements once"]),
        (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([9])), ["outside"]),
        (lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32), ["otherwise"]),
        (lambda m: m.planner_data.__setitem__("w", ("n",)), ["one place"]),
        (lambda m: m.planner_data.__setitem__("w", ("x", 1)), ["lacks entries"]),
        (lambda m: m.planner_data.__setitem__("w", "w"), ["unknown way"]),
    ],
)
def test_metadata_that_leads_astray(tmp_path: Path, change: Callable[[Any], None], words: list[str]) -> None:
    torch.save({"secret": 1}, tmp_path / "secret")
    directory = dcp_dir(tmp_path)
    (directory / "link").symlink_to(tmp_path / "secret")
    metadata_of(directory, change)
    refused(tmp_path, directory, *words)


def test_a_dcp_file_that_is_cut_off(tmp_path: Path) -> None:
    (file,) = dcp_dir(tmp_path).glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, tmp_path / "in", "cut off")


def header(table: Any, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{",
        header({"w": F32}, b"1234567"),
        header({"w": F32}, b"123456789"),
        header({"w": {**F32, "data_offsets": [0, 1 << 62]}}, b"12345678"),
        header({"w": {**F32, "data_offsets": [4, 12]}}, b"123456789012"),
        header({"w": {**F32, "shape": [1 << 62, 1 << 62]}}, b"12345678"),
        header({"w": {**F32, "shape": [-2]}}, b"12345678"),
        header({"w": {**F32, "shape": [True, 2]}}, b"12345678"),
        header({"w": {**F32, "dtype": "F31"}}, b"12345678"),
        header({"w": F32, "v": F32}, b"12345678"),
        header({"w": [1, 2]}, b"12345678"),
        header(b'{"w":' + json.dumps(F32).encode() + b',"w":' + json.dumps(F32).encode() + b"}", b"12345678"),
        header(b"{" * 100_000),
        header(b'{"\xff": 1}'),
    ],
)
def test_safetensors_that_are_none(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "in.safetensors").write_bytes(body)
    refused(tmp_path, tmp_path / "in.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"w": "../secret.safetensors"}, "leads out"),
        ({"w": "link.safetensors"}, "leads out"),
        ({"w": "gone.safetensors"}, "missing"),
        ({"v": "a.safetensors"}, "lacks a tensor"),
        ({}, "no weight_map"),
        (["a.safetensors"], "no weight_map"),
        ({"w": 3}, "no weight_map"),
    ],
)
def test_an_index_that_leads_astray(tmp_path: Path, weight_map: Any, word: str) -> None:
    (tmp_path / "in").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "in" / "a.safetensors")
    (tmp_path / "in" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    text = json.dumps({"weight_map": weight_map} if weight_map else {"metadata": {}})
    (tmp_path / "in" / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, tmp_path / "in", word)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", "a\0b", "a\nb", "./a", "x" * 900])
def test_names_that_lead_out(name: str) -> None:
    with pytest.raises(InterchangeError):
        check_name(name)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "a b.safetensors", "ünder/a.pt", "..a", "a..b"])
def test_names_that_do_not(name: str) -> None:
    assert check_name(name) == name
