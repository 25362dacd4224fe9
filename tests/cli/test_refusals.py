"""What a user sees who asks for something that can't be: one line that says what to try, and an exit code. Real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.minio import SECRET_KEY, MinioServer
from ckptd.demo.cluster import Cluster, Plan
from tests.waiting import eventually_sync

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "train_gpt.py"
CKPTD = [str(Path(sys.executable).with_name("ckptd"))]
TRAIN = ["--steps", "12", "--context", "16", "--width", "16", "--layers", "1", "--heads", "2", "--text-bytes", "100000"]
FAILED, BAD_SETTINGS, JOB_IN_USE = 1, 2, 3


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command's end."""
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def refusal(arguments: list[str], code: int, program: list[str] = CKPTD, **environment: str) -> str:
    """The one line with which ckptd refuses."""
    done = run([*program, *arguments], **environment)
    assert done.returncode == code, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith('{"event"')]  # the log may say what it looked at
    assert len(said) == 1, done.stderr
    assert said[0].startswith("ckptd: ")
    assert "Traceback" not in done.stderr + done.stdout
    return said[0]


# ---- the store


def test_a_store_that_overwrites() -> None:
    program = [sys.executable, str(HERE / "overwriting_ckptd.py")]
    said = refusal(["coordinator", "--job", "job", "--store", "overwriting://bucket/x"], BAD_SETTINGS, program)
    assert "a second create of one key succeeded" in said
    assert "use a store with conditional writes" in said


WITH_PASSWORD = "nosuch://me:hunter2@host/x"
LS = ["ls", "--job", "job"]


@pytest.mark.parametrize(
    ("verb", "url"),
    [
        (["daemon"], WITH_PASSWORD),
        (["coordinator", "--job", "job"], WITH_PASSWORD),
        *((LS, url) for url in ("s3:/bucket/x", WITH_PASSWORD, "checkpoints/here", "s3://")),
    ],
)
def test_wrong_url(verb: list[str], url: str) -> None:
    said = refusal([*verb, "--store", url], BAD_SETTINGS)
    assert "s3://bucket/prefix" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("verb", [["daemon"], ["ls", "--job", "job"], ["coordinator", "--job", "job"], ["demo"]])
def test_missing_bucket(verb: list[str], minio: MinioServer) -> None:
    options = json.dumps(minio.storage_options)
    said = refusal([*verb, "--store", "s3://no-such-bucket/p"], BAD_SETTINGS, CKPTD_STORE__STORAGE_OPTIONS=options)
    assert "the bucket does not exist: create it, or correct the URL" in said


@pytest.mark.parametrize("wrong", [{"key": "nobody"}, {"secret": "hunter2"}])
def test_wrong_credentials(wrong: dict[str, str], minio: MinioServer, minio_url: str) -> None:
    options = json.dumps({**minio.storage_options, **wrong})
    for verb in (["daemon"], ["coordinator", "--job", "job"]):
        said = refusal([*verb, "--store", minio_url], BAD_SETTINGS, CKPTD_STORE__STORAGE_OPTIONS=options)
        assert "check the key, the secret and the endpoint" in said
        assert SECRET_KEY not in said and "hunter2" not in said


# ---- settings


def test_no_store_at_all() -> None:
    assert "say --store URL" in refusal(["daemon"], BAD_SETTINGS)


@pytest.mark.parametrize(
    ("text", "place", "allowed"),
    [
        ("[daemon]\n\nframe_byte = 4096\n", ":3: daemon.frame_byte", "frame_bytes, segment_bytes"),
        ("[daemon]\ncpu_threads = 0\n", ":2: daemon.cpu_threads", "greater than or equal to 1"),
        ("[demon]\ncpu_threads = 1\n", ":1: demon", "sections: store, arena, daemon, coordinator"),
        ('[daemon]\ncodec = "gzip"\n', ":2: daemon.codec", "'raw', 'planes' or 'auto'"),
        ("[daemon\n", "settings.toml", "line 1"),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, place: str, allowed: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    said = refusal(["daemon", "--store", str(tmp_path / "store"), "--config", str(file)], BAD_SETTINGS)
    assert str(file) in said and place in said and allowed in said


def test_bad_setting_in_the_environment(tmp_path: Path) -> None:
    said = refusal(["daemon", "--store", str(tmp_path)], BAD_SETTINGS, CKPTD_DAEMON__CPU_THREADS="many")
    assert "daemon.cpu_threads" in said and "valid integer" in said


def test_a_secret_in_bad_settings_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[store]\nstorage_option = { secret = "hunter2" }\n')
    said = refusal(["daemon", "--config", str(file)], BAD_SETTINGS)
    assert "store.storage_option" in said and "hunter2" not in said


def test_bad_job_id(tmp_path: Path) -> None:
    said = refusal(["coordinator", "--job", "a/b", "--store", str(tmp_path)], BAD_SETTINGS)
    assert "1 to 64 letters, digits" in said


# ---- against a running cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A coordinator of the job `job` that wants a snapshot every 4 steps."""
    cluster = Cluster(Plan("job", str(tmp_path / "store"), EXAMPLE, TRAIN), tmp_path, ["--every", "4"])
    try:
        cluster.start_coordinator()
        yield cluster
    finally:
        cluster.close()


def test_a_job_id_in_use(cluster: Cluster) -> None:
    said = refusal(["coordinator", "--job", "job", "--store", cluster.plan.store], JOB_IN_USE)
    assert "stop it, use another job id, or say --take-over" in said


def test_two_daemons_on_one_socket_or_in_one_arena_directory(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.node("a")
    node.start_daemon()
    arguments = ["daemon", "--store", cluster.plan.store, "--node", "other", "--socket"]
    said = refusal([*arguments, str(node.socket)], BAD_SETTINGS)
    assert "already running here; use it, or name another socket in CKPTD_SOCKET" in said
    said = refusal([*arguments, str(tmp_path / "other.sock"), "--arena-directory", str(node.arena)], BAD_SETTINGS)
    assert "give each its own" in said
    assert node.daemon is not None and node.daemon.code is None


def test_client_and_daemon_of_different_versions(cluster: Cluster) -> None:
    node = cluster.node("a")
    node.start_daemon()
    done = run([sys.executable, str(HERE / "trainer_of_another_version.py")], CKPTD_SOCKET=str(node.socket))
    assert done.returncode == FAILED
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ckptd_client.errors.VersionMismatchError: ")
    assert "this client speaks protocol 99, the daemon on this node 1; the daemon is older" in said
    assert "install the same version of ckptd and ckptd-client and restart the daemon" in said


def test_an_arena_that_does_not_fit(tmp_path: Path) -> None:
    """The first registration: whoever starts a training must know at once that nothing would be saved."""
    environment = {"CKPTD_ARENA__LIMIT_BYTES": str(1 << 20)}
    cluster = Cluster(Plan("job", str(tmp_path / "store"), EXAMPLE, TRAIN, environment=environment), tmp_path, ["--every", "4"])
    try:
        cluster.start_coordinator()
        node = cluster.node("a")
        node.start_daemon()
        done = run([sys.executable, str(EXAMPLE), *TRAIN, "--width", "128"], **{**node.environment, "CKPTD_JOB": "job"})
    finally:
        cluster.close()
    assert done.returncode == FAILED
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ckptd_client.errors.ResourceError: ")
    assert "would exceed arena.limit_bytes; raise it" in said and "limit_bytes=1048576" in said


def test_daemon_and_coordinator_on_different_stores(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.coordinator is not None
    address = next(line.text.partition("address=")[2] for line in cluster.output if "ready address=" in line.text)
    environment = {**os.environ, "CKPTD_DAEMON__COORDINATOR": address, "CKPTD_SOCKET": str(tmp_path / "other.sock")}
    other = Cluster(Plan("job", str(tmp_path / "elsewhere"), EXAMPLE, TRAIN, environment=environment), tmp_path)
    node = other.node("other")
    try:
        node.start_daemon()
        node.start_agent()
        eventually_sync(
            lambda: other.output.count("other-daemon", "daemon and coordinator look at different stores") > 0,
            "a line in its log",
        )
        assert other.output.count("other-daemon", "give both the same --store") == 1  # said once, not at each try
        assert node.agent is not None and node.agent.wait(60) == FAILED
        assert other.output.count("other-agent", "ckptd-run: daemon and coordinator look at different stores") == 1
        done = run([sys.executable, str(EXAMPLE), *TRAIN], **{**node.environment, "CKPTD_JOB": "job"})
        assert done.returncode == FAILED
        said = done.stderr.splitlines()[-1]
        assert said.startswith("ckptd_client.errors.ConfigError: daemon and coordinator look at different stores")
        assert "give both the same --store" in said
    finally:
        other.close()
