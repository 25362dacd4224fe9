"""A torch-free training job: an agent and its ranks, which speak ckptd's own client code and start in milliseconds.

    python -P chaos/standin.py --job JOB [--nproc 2] [--nodes 1:3] [--seed 7] [--mb 1] [--pace 0.01] [--say 1]
                               (--until N | --end-file FILE)          (with the repository's root in PYTHONPATH)

Start one per node, with the node's CKPTD_SOCKET, in place of `ckptd-run` (``Node.start_agent([sys.executable, "-P"])`` with
`Plan.script` set to this file does). It joins the rendezvous as torch's agent does, forks its ranks from a process that has
all modules loaded, ends them when the coordinator wants a new generation or one of them fails, and joins again. The ranks
step together as if by collectives, as fast as they can or every ``--pace`` seconds, and save when the schedule says so.

``--mb`` is the size of the whole state in MiB; ``--seed`` makes its shapes and bytes, and must be the same over the job's whole
life. Each world cuts the tensors anew, at random, in uneven and empty pieces. All bytes restored are checked: see `content`.

Lines on stdout, one write each:

    restored rank=R step=S world=W generation=E-N pid=P     each rank, once all of its bytes were found right (step 0: nothing)
    durable rank=R step=S seq=Q generation=E-N              each rank, when it was told that this step is committed
    step=S loss=L world=W                                   rank 0, every ``--say`` steps; L is 1/S
    trained until step S                                    rank 0, at the end
    WRONG rank=R …                                          a restore gave other bytes than it said: never to be seen

Exit code 0 when the job is done.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from chaos.standin_rank import Rank, Together, WrongBytesError, say
from ckptd_client.agent_link import AgentLink, AnswerTimeoutError, GenerationOverError, JobCompleteError
from ckptd_client.errors import CkptdError
from ckptd_client.messages.agents import Formed, KvGet, KvSet, KvValue, World
from ckptd_client.place import Place, die_with_agent
from ckptd_client.wire import default_socket

JOIN_SECONDS = 600.0
WATCH_SECONDS = 0.02
_NEVER = 1 << 40


def train(place: Place, options: argparse.Namespace) -> int:
    """One rank's whole life; its exit code."""
    rank = Rank(place, default_socket(), options.seed, int(options.mb * (1 << 20)), say)
    try:
        done = rank.restore()
        epoch, n = rank.member.generation
        me = f"rank={place.rank} step={done} world={place.world_size} generation={epoch}-{n} pid={os.getpid()}"
        say(f"restored {me}")
        together = Together(place)
        end = together.step(done, _last(options))
        for step in range(done + 1, _NEVER):
            if step > end:
                break
            started = time.monotonic()
            end = together.step(step, _last(options) if place.rank == 0 and step % options.say == 0 else end)
            rank.step(step)
            if place.rank == 0 and step % options.say == 0:
                say(f"step={step} loss={1 / step:.9f} world={place.world_size}")
            if options.pace:
                time.sleep(max(0.0, options.pace - (time.monotonic() - started)))
        rank.close()
        if place.rank == 0:
            say(f"trained until step {end}")
        return 0
    except WrongBytesError as error:
        say(f"WRONG rank={place.rank} world={place.world_size} {error}")
        return 3
    except (CkptdError, OSError) as error:
        say(f"rank {place.rank} ends: {type(error).__name__}: {error}")
        return 1


def _last(options: argparse.Namespace) -> int:
    named: Path | None = options.end_file
    return int(named.read_text()) if named is not None and named.exists() else options.until


class Nursery:
    """Forks ranks. A process of its own, because one with threads (the agent has some) can't fork in safety."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Call it before any thread is started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            die_with_agent()
            _raise_ranks(theirs, options)
        theirs.close()
        self._line = ours

    def start(self, places: list[Place]) -> None:
        """Start these ranks."""
        for place in places:
            body = [place.job, place.rank, place.world_size, place.local_rank, place.world_key]
            self._line.send(json.dumps(body).encode())

    def stop(self) -> None:
        """Kill all ranks that are left, and return when they are gone."""
        self._line.send(b"stop")
        while self._hear() != "stopped":
            pass

    def ended(self, seconds: float) -> int | None:
        """A rank's exit code, if one ends within ``seconds``."""
        if not select.select([self._line], [], [], seconds)[0]:
            return None
        return int(self._hear())

    def _hear(self) -> str:
        data = self._line.recv(64)
        if not data:
            raise SystemExit("the process that forks ranks is gone")
        return data.decode()


def _raise_ranks(line: socket.socket, options: argparse.Namespace) -> None:
    living: set[int] = set()
    while True:
        asked = select.select([line], [], [], WATCH_SECONDS)[0]
        data = line.recv(4096) if asked else b""
        if asked and not data:
            os._exit(0)
        if data == b"stop":
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            for pid in living:
                os.waitpid(pid, 0)
            living.clear()
            line.send(b"stopped")
        elif data:
            pid = os.fork()
            if pid == 0:
                die_with_agent()
                line.close()
                code = 1
                try:
                    code = train(Place(*json.loads(data)), options)
                finally:
                    os._exit(code)
            living.add(pid)
        for pid in list(living):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                living.discard(pid)
                line.send(str(os.waitstatus_to_exitcode(status)).encode())


class Agent:
    """As torch elastic's agent: joins, starts ranks, ends them, joins again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._nursery = Nursery(options)
        self._link = AgentLink(options.job, default_socket())

    def run(self) -> None:
        """Until the job is done."""
        least, most = (int(part) for part in self._options.nodes.split(":"))
        failure = ""
        while True:
            deadline = time.monotonic() + JOIN_SECONDS
            try:
                formed = self._link.join(self._options.nproc, least, most, deadline, failure)
                failure = ""
                places = self._meet(formed, least, most, deadline)
            except JobCompleteError:
                break
            except (AnswerTimeoutError, GenerationOverError) as error:
                if self._link.regroup is None:
                    raise
                say(f"joining again: {error}")
                continue
            self._nursery.start(places)
            ended = self._watch(len(places))
            if ended is None:
                break
            failure = ended
        self._link.leave(False, "done")

    def _watch(self, running: int) -> str | None:
        """Until all ranks have ended well (None), or the world is over: how the first rank failed, empty if none did."""
        failure = ""
        while running and not failure and self._link.regroup is None:
            code = self._nursery.ended(WATCH_SECONDS)
            if code == 0:
                running -= 1
            elif code is not None:
                failure = f"a rank ended with exit code {code}"
        if not running:
            return None
        self._nursery.stop()
        return failure

    def _meet(self, formed: Formed, least: int, most: int, deadline: float) -> list[Place]:
        """Exchange numbers of ranks and the address of rank 0 with the other agents; the places of our ranks."""
        me, generation, mine = formed.node_rank, formed.generation, self._options.nproc
        if me == 0:
            self._set(formed, "master", f"127.0.0.1:{_free_port()}", deadline)
        self._set(formed, f"ranks-{me}", str(mine), deadline)
        sizes = [int(self._get(formed, f"ranks-{node}", deadline)) for node in range(formed.num_nodes)]
        key = self._get(formed, "master", deadline)
        self._link.tell_world(World(generation, me, formed.num_nodes, mine, least, most, key))
        first, total = sum(sizes[:me]), sum(sizes)
        return [Place(self._options.job, first + local, total, local, key) for local in range(mine)]

    def _set(self, formed: Formed, key: str, value: str, deadline: float) -> None:
        self._link.finish(self._link.begin(lambda id: KvSet(id, formed.generation, key, value.encode())), deadline)

    def _get(self, formed: Formed, key: str, deadline: float) -> str:
        reply = self._link.finish(self._link.begin(lambda id: KvGet(id, formed.generation, key)), deadline)
        assert isinstance(reply, KvValue)
        return reply.value.decode()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="standin.py")
    parser.add_argument("--job", required=True)
    parser.add_argument("--nproc", type=int, default=2, help="ranks of this node")
    parser.add_argument("--nodes", default="1:3", help="least:most")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--mb", type=float, default=1.0)
    parser.add_argument("--pace", type=float, default=0.0, help="least seconds a step")
    parser.add_argument("--say", type=int, default=1, help="rank 0 speaks, and looks for the end, every so many steps")
    parser.add_argument("--until", type=int, default=_NEVER)
    parser.add_argument("--end-file", type=Path)
    Agent(parser.parse_args()).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
