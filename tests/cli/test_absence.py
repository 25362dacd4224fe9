"""Something is away, or full: training goes on, `ckptd status` and one line of the log say what it is and since when, and all
heals by itself. Real daemon, coordinator, store and (torch-free) trainers.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import chaos
from chaos.minio import MinioServer
from ckptd.cli.status import Answers, ask
from ckptd.commit.catalog import catalog
from ckptd.commit.log import CommitLog
from ckptd.config import load_settings
from ckptd.demo.cluster import Cluster, Node, Plan
from ckptd.errors import StoreError
from ckptd.store.open import open_store
from tests.waiting import eventually_sync

ROOT = Path(chaos.__file__).parents[1]
CKPTD = str(Path(sys.executable).with_name("ckptd"))
WELL, NOBODY, TROUBLE = 0, 1, 4
SECONDS = 60.0


class Training:
    """One node with two ranks that save every 10 steps, and what people see of it."""

    def __init__(self, directory: Path, store: str, options: dict[str, object], mb: str, **environment: str) -> None:
        arguments = ["--job", "job", "--nproc", "2", "--nodes", "1:1", "--mb", mb, "--pace", "0.02", "--until", "1000000"]
        environment |= {"PYTHONPATH": str(ROOT), "CKPTD_STORE__STORAGE_OPTIONS": json.dumps(options)}
        environment |= {"CKPTD_DAEMON__METRICS_BIND": "127.0.0.1:0", "CKPTD_COORDINATOR__METRICS_BIND": "127.0.0.1:0"}
        plan = Plan("job", store, ROOT / "chaos" / "standin.py", arguments, environment=environment)
        self.cluster = Cluster(plan, directory, ["--every", "10"])
        self.output = self.cluster.output
        self.store = open_store(store, options)
        self.settings = load_settings(
            None, {"store": {"url": store, "storage_options": options}, "daemon": {"socket": self.node.socket}}
        )

    @property
    def node(self) -> Node:
        return self.cluster.node("a")

    def step(self) -> int:
        """The step that rank 0 has said last."""
        return max((int(line.text[5:].split()[0]) for line in self.output if line.text.startswith("step=")), default=0)

    def goes_on(self, steps: int = 30) -> None:
        """Wait until the training has done so many more steps."""
        until = self.step() + steps
        eventually_sync(lambda: self.step() >= until, f"step {until} of the training", SECONDS)

    def durable(self) -> int:
        """Step of the newest commit."""
        entries = catalog(asyncio.run(CommitLog(self.store, "job").load()))
        return max((entry.step for entry in entries), default=0)

    def commits(self) -> None:
        """Wait for a commit of a step that is yet to come."""
        now = self.step()

        def later() -> bool:
            try:
                return self.durable() > now
            except StoreError:
                return False

        eventually_sync(later, f"a commit after step {now}", SECONDS)

    def status(self) -> Answers:
        """What `ckptd status` learns."""
        return asyncio.run(ask(self.settings, "job"))

    def troubled(self, *texts: str) -> Answers:
        """Wait until the status tells of trouble in these words (regular expressions)."""
        found = [self.status()]

        def told() -> bool:
            found[0] = self.status()
            said = [f"{concern.where}: {concern.topic}: {concern.what}" for concern in found[0].concerns()]
            return all(any(re.search(text, line) for line in said) for text in texts)

        eventually_sync(told, f"a status that says {texts}, not {found[0].concerns()}", SECONDS)
        assert found[0].code() == TROUBLE
        assert all(time.time() - 120 < concern.since <= time.time() for concern in found[0].concerns() if concern.since)
        return found[0]

    def well(self) -> None:
        """Wait until nobody knows of any trouble."""
        eventually_sync(lambda: self.status().code() == WELL, f"a clean status, not {self.status().concerns()}", SECONDS)

    def said(self, source: str, *texts: str) -> int:
        """How many lines of a log have all of these in them."""
        return sum(1 for line in self.output if line.source == source and all(text in line.text for text in texts))

    def metrics(self, source: str) -> dict[str, float]:
        """Scrape the daemon or the coordinator: {name of a sample, and the values of its labels by their names: value}."""
        address = next(line.text for line in reversed(list(self.output)) if line.source == source and "/metrics" in line.text)
        url = re.search(r"http://[0-9.:]+/metrics", address)
        assert url is not None
        with urllib.request.urlopen(url[0], timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
        return {" ".join([one.name, *(value for _, value in sorted(one.labels.items()))]): one.value for one in samples}


@contextmanager
def training(
    directory: Path, store: str, options: dict[str, object] | None = None, mb: str = "1", **environment: str
) -> Iterator[Training]:
    """Started, and its first checkpoints committed."""
    running = Training(directory, store, options or {}, mb, **environment)
    try:
        running.cluster.start_coordinator()
        running.node.start_daemon()
        running.node.start_agent([sys.executable, "-P"])
        running.commits()
        running.well()
        yield running
    finally:
        running.cluster.close()
        asyncio.run(running.store.close())


def ckptd(*arguments: str) -> tuple[int, Any]:
    """A command's exit code and its JSON."""
    done = subprocess.run([CKPTD, *arguments, "--json"], capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_store(tmp_path: Path, small_disk: Path) -> None:
    with training(tmp_path, str(small_disk / "store"), mb="0.2", CKPTD_COORDINATOR__KEEP_LAST="0") as run:
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 12))
        run.troubled("node a: store writes: .*the store is full; free space there")
        run.goes_on()
        assert ckptd("status", "--job", "job", "--socket", str(run.node.socket))[0] == TROUBLE
        assert run.said("a-daemon", '"event": "trouble"', "store writes", "the store is full") == 1
        assert run.said("a-agent", "store writes", "the store is full") == 1  # where the user looks
        ballast.unlink()
        run.commits()
        run.well()
        assert run.said("a-daemon", '"event": "trouble is over"', "store writes") == 1
        assert run.metrics("a-daemon")["ckptd_store_requests_total unavailable put"] > 0


def test_store_coordinator_and_daemon_gone_and_back(tmp_path: Path) -> None:
    """One after the other, in one training that never stops."""
    minio = MinioServer()
    minio.start()
    try:
        with training(tmp_path, minio.make_bucket("gone") + "/x", minio.storage_options) as run:
            pids = sorted({line.text.split("pid=")[1] for line in run.output if line.text.startswith("restored")})
            _store_gone(run, minio)
            _coordinator_gone(run)
            _daemon_gone(run)
            assert pids == sorted({line.text.split("pid=")[1] for line in run.output if line.text.startswith("restored")})
            assert not [line for line in run.output if "WRONG" in line.text]
            _scraped(run)
    finally:
        minio.close()


def _store_gone(run: Training, minio: MinioServer) -> None:
    minio.kill()
    run.troubled("node a: store writes: ", "coordinator: store: the coordinator can't write; training goes on")
    run.goes_on()
    minio.start()
    run.commits()
    run.well()
    assert run.said("a-daemon", '"event": "trouble"', '"topic": "store writes"') == 1
    assert run.said("a-daemon", '"event": "trouble is over"', '"topic": "store writes"') == 1
    assert run.said("coordinator", '"event": "trouble"', '"topic": "store"') == 1


def _coordinator_gone(run: Training) -> None:
    assert run.cluster.coordinator is not None
    run.cluster.coordinator.signal(signal.SIGKILL)
    run.cluster.coordinator.wait(10)
    answers = run.troubled(
        "node a: coordinator: training goes on, commits wait: no coordinator answers", "coordinator: asking: "
    )
    assert answers.daemon is not None and answers.coordinator is None
    run.goes_on()
    assert run.said("a-daemon", '"event": "trouble"', "no coordinator answers") == 1
    run.cluster.start_coordinator()
    run.commits()
    run.well()
    assert run.said("a-daemon", '"event": "trouble is over"', "no coordinator answers") == 1


def _daemon_gone(run: Training) -> None:
    assert run.node.daemon is not None
    before = run.said("a-agent", "lost the daemon; training goes on")
    run.node.daemon.signal(signal.SIGKILL)
    run.node.daemon.wait(10)
    run.troubled("this node: asking: no ckptd daemon answers; start one", "coordinator: node a: nothing is heard of the daemon")
    run.goes_on()
    run.node.start_daemon()
    run.commits()
    run.well()
    assert run.said("a-agent", "lost the daemon; training goes on") == before + 2  # each of two ranks, once


def _scraped(run: Training) -> None:
    """Every family of metrics is there, and the figures are those of this training."""
    # A daemon sets its gauges once a second, and this one is new.
    eventually_sync(lambda: run.metrics("a-daemon").get("ckptd_step job", 0) > 30, "the new daemon's gauges", SECONDS)
    daemon, coordinator = run.metrics("a-daemon"), run.metrics("coordinator")
    assert daemon["ckptd_ranks job"] == 2 and daemon["ckptd_coordinator_connected job"] == 1
    durable = daemon["ckptd_snapshots_total durable job"]
    assert durable > 0 and daemon["ckptd_snapshots_total sealed job"] > 0
    assert daemon["ckptd_staged_to_durable_seconds_count job"] == durable
    assert daemon["ckptd_uploaded_raw_bytes_total job"] >= 1_000_000
    assert daemon["ckptd_arena_bytes"] > 1_000_000
    assert daemon["ckptd_store_requests_total ok put"] > 0
    assert coordinator["ckptd_world_size job"] == 2 and coordinator["ckptd_nodes job alive"] == 1
    assert coordinator["ckptd_commits_total job"] >= 2 and coordinator["ckptd_durable_step job"] >= 20
    assert coordinator["ckptd_commit_seconds_count job"] <= coordinator["ckptd_commits_total job"]
    assert time.time() - 60 < coordinator["ckptd_durable_unix_seconds job"] <= time.time()
    assert coordinator["ckptd_regroups_total job"] == 0
