"""A save that can't be: an error on every rank, in bounded time, and nothing in the way of the next one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ckptd.demo.cluster import Cluster
from ckptd_client.dcp import CkptdReader, CkptdStager, CkptdWriter, saver
from ckptd_client.dcp.names import parse_id
from ckptd_client.errors import CkptdError, ConfigError, RestoreError, UnsupportedStateError
from tests.dcp.backends import JOB
from tests.e2e.harness import free_port

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_STATE = {"w": torch.arange(4.0)}


def test_no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "nobody"))
    with pytest.raises(CheckpointException, match="no ckptd daemon answers"):
        dcp.save(_STATE, storage_writer=CkptdWriter(JOB), no_dist=True)
    with pytest.raises(CheckpointException, match="no ckptd daemon answers"):
        dcp.load(dict(_STATE), storage_reader=CkptdReader(JOB), no_dist=True)


def test_no_coordinator(daemon: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "FORM_SECONDS", 1.5)
    with pytest.raises(CheckpointException, match="ckptd coordinator --job nobody"):
        dcp.save(_STATE, storage_writer=CkptdWriter("nobody"), no_dist=True)


class _Odd(DefaultSavePlanner):
    """Its data can't be stored without pickle."""

    def create_global_plan(self, all_plans: Any) -> Any:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = {"w": object()}
        return plans, metadata


def test_planner_data_that_would_need_pickle(daemon: Cluster) -> None:
    with pytest.raises(CheckpointException, match=r"ckptd\.dcp.*planner.*object"):
        dcp.save(_STATE, storage_writer=CkptdWriter(JOB, step=91), planner=_Odd(), no_dist=True)
    with pytest.raises(CheckpointException, match="no step 91"):
        dcp.load(dict(_STATE), storage_reader=CkptdReader(JOB, step=91), no_dist=True)
    dcp.save(_STATE, storage_writer=CkptdWriter(JOB, step=91), no_dist=True)


def test_a_rank_that_is_not_in_it(daemon: Cluster) -> None:
    with pytest.raises(ConfigError, match="give CkptdWriter one"):
        dcp.save(_STATE, storage_writer=CkptdWriter(JOB), no_dist=True, use_collectives=False)
    dcp.save(_STATE, storage_writer=CkptdWriter(JOB, step=93), no_dist=True, use_collectives=False)
    into = {"w": torch.zeros(4)}
    reader = CkptdReader(JOB, step=93)
    dcp.load(into, storage_reader=reader, no_dist=True)
    assert torch.equal(into["w"], _STATE["w"])
    with pytest.raises(RestoreError, match="nothing for rank 1: load it on 1"):
        reader.read_metadata(rank=1)


class _Dying(DefaultSavePlanner):
    """The process ends in the middle of its share."""

    def resolve_data(self, write_item: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def _rank(rank: int, port: int, socket: str, said: Any) -> None:
    os.environ["CKPTD_SOCKET"] = socket
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    begun = time.monotonic()
    try:
        state = {f"w{n}": torch.full((4,), float(n)) for n in range(4)}
        dcp.save(state, storage_writer=CkptdWriter(JOB, step=92), planner=_Dying() if rank else DefaultSavePlanner())
        said.put("saved")
    except BaseException as error:
        said.put((type(error).__name__, time.monotonic() - begun))
    said.close()
    said.join_thread()
    os._exit(0)


def test_a_rank_that_is_killed(daemon: Cluster) -> None:
    """DCP's collectives tell the others of it; the job is free for the next save at once."""
    context = multiprocessing.get_context("fork")
    said, port = context.Queue(), free_port()
    socket = str(daemon.node("a").socket)
    ranks = [context.Process(target=_rank, args=(rank, port, socket, said)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    answer = said.get(timeout=60)
    for rank in ranks:
        rank.join(20)
    assert answer != "saved" and ranks[1].exitcode == -signal.SIGKILL
    with pytest.raises(CheckpointException, match="no step 92"):
        dcp.load(dict(_STATE), storage_reader=CkptdReader(JOB, step=92), no_dist=True)
    dcp.save(_STATE, storage_writer=CkptdWriter(JOB, step=92), no_dist=True)


def test_errors_go_to_other_ranks() -> None:
    kinds = [kind for kind in _kinds(CkptdError) if kind.__module__.startswith("ckptd_client.")]
    assert UnsupportedStateError in kinds
    for kind in kinds:
        error = kind("w", "Odd", "it is odd") if kind is UnsupportedStateError else kind("it is so")
        told = pickle.loads(pickle.dumps(error))
        assert (type(told), str(told), vars(told)) == (kind, str(error), vars(error))


def _kinds(base: type[CkptdError]) -> list[type[CkptdError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _kinds(child))]


def test_names() -> None:
    assert parse_id("job") == ("job", None)
    assert parse_id("job/12") == parse_id("ckptd://job/12") == parse_id(Path("job/12")) == ("job", 12)
    for bad in ("", "/tmp/checkpoint", "a b", "job/x", "job/1/2", "x" * 65):
        assert not CkptdWriter.validate_checkpoint_id(bad) and not CkptdReader.validate_checkpoint_id(bad)
        with pytest.raises(ConfigError):
            CkptdWriter(bad)
    for step in (-1, True, 1.0, 10**15):
        with pytest.raises(ConfigError):
            CkptdReader("job", step=step)  # type: ignore[arg-type]


def test_a_writer_goes_to_another_process() -> None:
    writer = pickle.loads(pickle.dumps(CkptdWriter("job", step=5)))
    assert (writer.job, writer.step, writer.checkpoint_id) == ("job", 5, "job/5")


def test_a_copy_that_somebody_holds_is_not_overwritten() -> None:
    stager, state = CkptdStager(), {"a": torch.zeros(1000), "b": [torch.zeros(3), {"n": [1]}]}
    first = stager.stage(state)
    view = first["a"][500:].detach()  # keeps the memory, though the copy itself goes
    state["a"].fill_(1)
    state["b"][1]["n"][0] = 2
    second = stager.stage(state)
    assert first["b"][1]["n"] == [1] and first["b"][0].data_ptr() != second["b"][0].data_ptr()
    at = first["a"].data_ptr()
    del first
    assert float(view.sum()) == 0
    third = stager.stage(state)
    assert third["a"].data_ptr() not in (at, second["a"].data_ptr()) and float(view.sum()) == 0
    del view, third
    warm = stager.stage(state)["a"].data_ptr()
    assert warm == stager.stage(state)["a"].data_ptr(), "memory that nobody holds is used again"
