"""The rendezvous plug-in: `torchrun --rdzv-backend=ckptd --rdzv-id=JOB --max-restarts=1000000 …` becomes elastic for real.

torch's agent asks here for the next world of workers and, between, whether anybody waits for a new one. Who is in the next
world is the coordinator's decision (PROTOCOLS 5); the agent's daemon carries the question there and the answer back.

Settings, as `--rdzv-conf=key=value,…`: ``join_timeout`` (seconds to wait for a world, 600), ``local_world_size`` (only where no
torch agent calls, in tests).

The workers' address is `--local-addr` of the first node's agent, else that node's fully qualified host name, as torch has it.
Where that name doesn't lead to the node, give each agent its `--local-addr`; several on one machine: `--local-addr=127.0.0.1`.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.utils.distributed import get_free_port

from ckptd_client.agent_link import AgentLink, AnswerTimeoutError, JobCompleteError, JobStoppedError
from ckptd_client.errors import CkptdError
from ckptd_client.kv import DaemonStore
from ckptd_client.messages.agents import Formed, World
from ckptd_client.wire import default_socket

# Keys and form of what torch's agents tell each other of their workers (SimpleElasticAgent._assign_worker_ranks): private to
# torch. Should they change, the agents exchange them through our store; only the protection of `_meet` is lost then.
_ROLE_INFO = "torchelastic/role_info/"
_ASSIGNED_RANKS = "torchelastic/assigned_ranks/"

_MASTER = [RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY]

_log = logging.getLogger("ckptd.rendezvous")


def handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Entry point of the group `torchrun.handlers`: torch calls it and registers what it returns."""
    return CkptdRendezvousHandler


class CkptdRendezvousHandler(RendezvousHandler):
    """One agent's side of the rendezvous."""

    def __init__(self, params: RendezvousParameters) -> None:
        self._params = params
        self._join_seconds = float(params.get("join_timeout", 600))
        self._link = AgentLink(params.run_id, default_socket())

    def get_backend(self) -> str:
        """The name given to `--rdzv-backend`."""
        return "ckptd"

    def get_run_id(self) -> str:
        """The job's id."""
        run_id: str = self._params.run_id
        return run_id

    @property
    def use_agent_store(self) -> bool:
        """Never: worker rank 0 hosts a TCPStore of its own, at a fresh port for each generation.

        In a shared store torch keeps the generations apart by TORCHELASTIC_RESTART_COUNT, which each agent counts for itself:
        after one worker's failure the agents would look under different prefixes.
        """
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until this node is part of a new world. Exits the process with 0 when the job is complete.

        Raises RendezvousClosedError with the coordinator's diagnosis when the job is stopped, RendezvousTimeoutError after
        ``join_timeout`` seconds, RendezvousConnectionError when it is refused.
        """
        role, local_world_size = self._workers()
        failure = _failure_of_workers()
        deadline = time.monotonic() + self._join_seconds
        while True:
            try:
                nodes = self._params.min_nodes, self._params.max_nodes
                formed = self._link.join(local_world_size, *nodes, deadline, failure)
                failure = ""
                return self._meet(formed, role, local_world_size, deadline)
            except JobCompleteError as done:
                # not RendezvousGracefulExitError, which stock launch_agent stumbles over, and not RendezvousClosedError, which
                # makes torchrun fail: its `main` turns a SystemExit of 0 into success
                _log.info("the job is complete, nothing left to do here: %s", done)
                raise SystemExit(0) from done
            except JobStoppedError as stopped:
                raise RendezvousClosedError(str(stopped)) from stopped
            except AnswerTimeoutError as silence:
                raise RendezvousTimeoutError(str(silence)) from silence
            except CkptdError as refusal:
                raise RendezvousConnectionError(str(refusal)) from refusal
            except DistStoreError as error:
                if self._link.regroup is None:
                    raise RendezvousTimeoutError(str(error)) from error
                _log.warning("a member was lost before all had met; joining again: %s", self._link.regroup)

    def is_closed(self) -> bool:
        """Whether no further world will be formed."""
        return self._link.complete

    def set_closed(self) -> None:
        """Nothing: an agent that ends says so in `shutdown`, and only the coordinator closes a job."""

    def num_nodes_waiting(self) -> int:
        """1 when the coordinator wants a newer generation: torch's agent then stops its workers and joins again."""
        return 0 if self._link.regroup is None else 1

    def shutdown(self) -> bool:
        """Say goodbye. torch calls this on its way out, while the error that ends the agent, if any, is in flight."""
        error = sys.exc_info()[1]
        reason = "done" if error is None else f"{type(error).__name__}: {error}"[:2000]
        self._link.leave(isinstance(error, Exception), reason)  # SystemExit is none: it is the end of the job, or a signal
        return True

    def _meet(self, formed: Formed, role: str, local_world_size: int, deadline: float) -> RendezvousInfo:
        """Exchange workers and master address with the other agents of the generation.

        All that torch will ask the store for is fetched here, where a member's death only means to join again. Later, in
        `_assign_worker_ranks`, it would end this agent, too.
        """
        me, nodes = formed.node_rank, range(formed.num_nodes)
        store = DaemonStore(self._link, formed.generation)
        patience = store.timeout  # type: ignore[attr-defined]  # there, but missing in torch's stub
        store.set_timeout(timedelta(seconds=max(deadline - time.monotonic(), 1.0)))
        if me == 0:
            free_port = get_free_port()  # type: ignore[no-untyped-call]
            store.multi_set(_MASTER, [self._params.local_addr or socket.getfqdn(), str(free_port)])
        store.set(f"{_ROLE_INFO}{me}", json.dumps({"role": role, "rank": me, "local_world_size": local_world_size}))
        *infos, address, port = store.multi_get([*(f"{_ROLE_INFO}{node}" for node in nodes), *_MASTER])
        self._link.check_over()
        store.settle(_all_ranks(infos))
        store.set_timeout(patience)
        master = RendezvousStoreInfo(address.decode(), int(port))
        self._link.tell_world(self._world(formed, local_world_size, f"{master.master_addr}:{master.master_port}"))
        return RendezvousInfo(store, me, formed.num_nodes, master)

    def _world(self, formed: Formed, local_world_size: int, world_key: str) -> World:
        return World(
            generation=formed.generation,
            node_rank=formed.node_rank,
            num_nodes=formed.num_nodes,
            local_world_size=local_world_size,
            min_nodes=self._params.min_nodes,
            max_nodes=self._params.max_nodes,
            world_key=world_key,
        )

    def _workers(self) -> tuple[str, int]:
        """Role and number of this agent's workers.

        torch tells a handler neither, though a world can't be planned without: so ask the agent that is calling us.
        """
        for names in _agent_frames():
            spec = names["self"].get_worker_group().spec
            return spec.role, spec.local_world_size
        return "default", int(self._params.get("local_world_size", 1))


def _agent_frames() -> Iterator[dict[str, Any]]:
    """The local variables of the torch agent's methods that are calling us, innermost first."""
    from torch.distributed.elastic.agent.server.api import ElasticAgent  # not above: it imports the package that loads us

    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ElasticAgent):
            yield frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]


def _failure_of_workers() -> str:
    """Which workers of the agent that is calling us failed, the first first, and how; empty when none did.

    torch tells a handler nothing of it. What the agent saw last is private to torch: without it, only the words are lost.
    """
    seen = next((names["run_result"] for names in _agent_frames() if "run_result" in names), None)
    failures = getattr(seen, "failures", None) or {}
    try:
        ordered = sorted(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
        return "; ".join(f"rank {rank}: exit code {of.exitcode}{_words(of.message)}" for rank, of in ordered[:8])[:2000]
    except (AttributeError, TypeError):
        return "workers failed"


def _words(message: object) -> str:
    """What a worker's error file says, on one line; torch's advice on how to get one says nothing."""
    text = message.get("message") if isinstance(message, dict) else message
    if not isinstance(text, str) or not text or text.startswith("To enable traceback"):
        return ""
    return f" ({' '.join(text.split())[:300]})"


def _all_ranks(infos: list[bytes]) -> dict[str, bytes]:
    """What torch's agents would have in the store after they had assigned their workers' ranks, given each node's own words."""
    sizes = [int(json.loads(info)["local_world_size"]) for info in infos]
    values = {f"{_ROLE_INFO}{node}": info for node, info in enumerate(infos)}
    for node in range(len(infos)):
        base, total = sum(sizes[:node]), sum(sizes)
        # first rank and world size, over all workers and over those of the same role: all have one
        values[f"{_ASSIGNED_RANKS}{node}"] = json.dumps([base, total, base, total]).encode()
    return values
