"""Copies from CUDA devices, on a device. A copy that is to be late is: its stream sleeps, while the trainer's goes on.

The tensors' truth is taken where `step` is called; the daemon has what was in shared memory where it was sealed.
"""

from __future__ import annotations

import itertools
import mmap
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ckptd_client import connect, hidden
from ckptd_client.devices import Outgoing, Pinned, cuda_runtime, outgoing
from ckptd_client.regions import local_of
from tests.client.fake_daemon import FakeDaemon
from tests.client.hiding import WIDTH, Net, Training, adamw
from tests.client.test_devices import expected, laid_out, strange_tensors
from tests.client.training import until

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SLEEP_CYCLES = 400_000_000  # two tenths of a second or so


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = outgoing.send

    def send(*arguments: Any, **named: Any) -> None:
        torch.cuda._sleep(SLEEP_CYCLES)
        right(*arguments, **named)

    monkeypatch.setattr(outgoing, "send", send)


def pinned(count: int) -> tuple[Pinned, torch.Tensor]:
    mapping = mmap.mmap(-1, -(-count // mmap.PAGESIZE) * mmap.PAGESIZE)
    return Pinned(mapping, cuda_runtime(torch.device("cuda", 0))), torch.frombuffer(mapping, dtype=torch.uint8)


# ---- copies


@pytest.mark.parametrize("small", [0, 20_000])
def test_every_kind_of_tensor(late: None, small: int) -> None:
    """What the trainer's stream writes after `now` isn't in the copy, though that is late; nothing waits on the host."""
    tensors = [*strange_tensors(), *torch.randn(small, 25).unbind(0)]
    sources = [tensor.cuda() for tensor in tensors]
    number = torch.randn(5, dtype=torch.complex64, device="cuda")
    sources += [number.conj(), number.clone().conj().imag, torch.randn(8, 6, 5, device="cuda")[::2, 1:3]]
    sources += [torch.randn(8, 6, 5, device="cuda").permute(2, 0, 1)]
    truth = [expected(source.cpu()) for source in sources]
    spans, _, _ = laid_out([(source.nbytes, "a", at % 7 == 3) for at, source in enumerate(sources)])
    pages, slot = pinned(sum(spans[-1]))
    assert slot.is_pinned()
    torch.cuda.synchronize()
    copy = Outgoing(pages, slot)
    copy.now(spans, sources)
    assert not copy.fence()
    for source in sources:
        source.zero_()
    del sources
    assert copy.finish() == [] and copy.fence()
    for (offset, count), body in zip(spans, truth, strict=True):
        assert slot[offset : offset + count].numpy().tobytes() == body


def test_memory_is_not_given_away_while_it_is_read(late: None) -> None:
    source = torch.ones(1 << 20, device="cuda")
    samples = hidden.Samples([source])
    pages, slot = pinned(source.nbytes)
    copy = Outgoing(pages, slot)
    copy.later([(0, source.nbytes)], [source], samples)
    del source
    others = [torch.zeros(1 << 20, device="cuda") for _ in range(4)]
    assert copy.finish() == []
    assert (slot[: 4 << 20].view(torch.float32) == 1).all() and len(others) == 4


# ---- a training


@pytest.mark.parametrize("when", ["late", "prompt"])
@pytest.mark.parametrize(
    "make", [adamw(foreach=True), adamw(foreach=False), adamw(fused=True)], ids=["foreach", "plain", "fused"]
)
def test_every_snapshot_is_exact(daemon: FakeDaemon, make: Any, when: str, request: pytest.FixtureRequest) -> None:
    if when == "late":
        request.getfixturevalue("late")
    daemon.schedule = (1, 1)
    training = Training(make, "cuda")
    for n in range(1, 13):
        training.step(n)
        assert training.under_way == training.handles[n].hidden == (n > hidden.GAPS)
    training.ckpt.close()
    training.check(daemon, *range(1, 13))
    assert daemon.missed == []


@pytest.mark.parametrize("how", ["counted", "data", "load"])
def test_an_unforeseen_write_costs_the_snapshot_never_its_truth(daemon: FakeDaemon, late: None, how: str) -> None:
    daemon.schedule = (1, 1)
    training = Training(device="cuda")
    weight = training.net.first.weight
    other = {key: value + 1 for key, value in training.net.state_dict().items()}

    def write() -> None:
        with torch.no_grad():
            if how == "counted":
                weight.add_(1)
            elif how == "data":
                weight.data.add_(1)
            else:
                training.net.load_state_dict(other)

    for n in range(1, 12):
        training.step(n, write if n == 7 else lambda: None)
    training.ckpt.close()
    training.check(daemon, *(n for n in range(1, 12) if n != 6))
    assert [missed.step for missed in daemon.missed] == [6]
    assert ("net.frozen and 1 more" if how == "load" else "net.first.weight") in daemon.missed[0].reason


def test_a_recorded_optimizer_is_known_for_a_regular_writer(daemon: FakeDaemon, late: None) -> None:
    """Its hook runs where it is recorded, and never again; nor do version counters move."""
    daemon.schedule = (1, 1)
    training = Training(adamw(capturable=True), "cuda")
    batch = torch.randn(8, WIDTH, device="cuda")
    (optimizer,) = training.optimizers

    def once() -> None:
        optimizer.zero_grad(set_to_none=False)
        training.net(batch).square().mean().backward()
        optimizer.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    for n in range(1, 8):
        graph.replay()
        training.truth[n] = training.state()
        training.ckpt._stager.let_write()
        until(lambda: training.ckpt._stager.arena is None or bool(training.ckpt._stager._free))
        training.ckpt.step(n)
    training.ckpt.close()
    training.check(daemon, *range(1, 8))
    assert {"net.first.weight", "optimizer0.state.0.exp_avg"} <= training.ckpt._stager.hidden._exposed


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
def test_a_state_on_two_devices(daemon: FakeDaemon, late: None, other: str) -> None:
    if other == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    daemon.schedule = (2, 2)
    homes = {"one": "cuda:0", "two": other}
    nets = {name: Net().to(home) for name, home in homes.items()}
    optimizers = {f"{name}_optimizer": torch.optim.AdamW(net.parameters()) for name, net in nets.items()}
    truth: dict[int, bytes] = {}
    with connect("job") as ckpt:
        ckpt.register(**nets, **optimizers)
        for n in ckpt.steps(8):
            for (name, net), optimizer in zip(nets.items(), optimizers.values(), strict=True):
                optimizer.zero_grad()
                net(torch.randn(8, WIDTH, device=homes[name])).square().mean().backward()
                optimizer.step()
            truth[n] = b"".join(expected(net.first.weight.detach().cpu()) for net in nets.values())
            ckpt._stager.let_write()
            until(lambda: ckpt._stager.arena is None or bool(ckpt._stager._free))
        assert ckpt._stager.hidden._exposed == set()
    assert [checkpoint.step for checkpoint in daemon.checkpoints] == [2, 4, 6, 8]
    for checkpoint in daemon.checkpoints:
        weights = [checkpoint.pieces[f"{name}.first.weight"][0][2] for name in nets]
        assert b"".join(weights) == truth[checkpoint.step]


def test_shards(daemon: FakeDaemon, late: None) -> None:
    """FSDP2, whose parameters are DTensors; a world of one."""
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def sharded(net: Net) -> list[torch.optim.Optimizer]:
        fully_shard(net, mesh=init_device_mesh("cuda", (1,)))
        return [torch.optim.AdamW(net.parameters())]

    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        daemon.schedule = (1, 1)
        training = Training(sharded, "cuda")
        for n in range(1, 7):
            training.step(n)
            assert training.under_way == (n > hidden.GAPS)
        training.ckpt.close()
        training.check(daemon, *range(1, 7))
    finally:
        dist.destroy_process_group()


class Refusing:
    """The CUDA runtime, which is asked for what it must refuse: its error is a real one, and left behind as a real one is."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def cudaHostRegister(self, address: int, count: int, flags: int) -> Any:  # noqa: N802
        return self._runtime.cudaHostRegister(0, 0, flags)


def test_without_pinned_memory(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refusing = Refusing(torch.cuda.cudart())
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refusing)
    daemon.schedule = (1, 1)
    training = Training(device="cuda")
    for n in range(1, 9):
        training.step(n)
        assert training.handles[n].staged and not training.handles[n].hidden
    training.ckpt.close()
    training.check(daemon, *range(1, 9))
    assert sum("stops training" in record.message for record in caplog.records) == 1


def test_restore(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    training = Training(device="cuda")
    for n in range(1, 5):
        training.step(n)
    training.ckpt.close()
    net = Net().cuda()
    optimizer = torch.optim.AdamW(net.parameters())
    with connect("job") as ckpt:
        ckpt.register(net=net, optimizer0=optimizer)
        assert ckpt.restore() == 4 and ckpt.rng_restored == "exact"
        training.net, training.optimizers = net, [optimizer]
        assert training.state() == training.truth[4]


# ---- time


def test_a_hidden_copy_blocks_for_a_tenth_of_a_copy_at_most(daemon: FakeDaemon) -> None:
    """1.5 GiB of weights and moments; forward and backward take longer than the copy does."""
    daemon.schedule = (1, 1)
    weights = [torch.nn.Parameter(torch.randn(32 << 20, device="cuda")) for _ in range(4)]
    net = torch.nn.ParameterList(weights)
    optimizer = torch.optim.AdamW(weights, fused=True)
    pages, slot = pinned(3 * sum(weight.nbytes for weight in weights))
    copies = [timed(lambda: plain_copy(slot, weights)) for _ in range(5)]
    with connect("job") as ckpt:
        ckpt.register(net=net, optimizer=optimizer)
        ckpt.restore()
        for n in range(1, 10):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            torch.cuda._sleep(SLEEP_CYCLES)
            torch.cuda.synchronize()  # as a trainer that looks at its loss
            optimizer.step()
            torch.cuda.synchronize()
            ckpt._stager.let_write()
            until(lambda: ckpt._stager.arena is None or bool(ckpt._stager._free))
            daemon.checkpoints.clear()
            handle = ckpt.step(n)
            assert handle is not None and handle.hidden == (n > hidden.GAPS)
    assert pages is not None
    blocked = statistics.median(daemon.stalls[n] for n in range(hidden.GAPS + 2, 9))
    print(f"blocked_ms={blocked * 1e3:.2f} copy_ms={statistics.median(copies) * 1e3:.2f}")
    assert blocked <= 0.10 * statistics.median(copies)


def plain_copy(slot: torch.Tensor, weights: list[torch.nn.Parameter]) -> None:
    at = 0
    for weight, _ in itertools.product(weights, range(3)):
        slot[at : at + weight.nbytes].copy_(local_of(weight).view(torch.uint8), non_blocking=True)
        at += weight.nbytes


def timed(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun
