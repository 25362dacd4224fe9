"""`ckptd-run`: launch a training script on this node, on torch's elastic agent.

Next to `torchrun --rdzv-backend=ckptd` it does two things. It sees to a daemon on this node and a coordinator for the job.
And it forks the workers from a server that has torch loaded, so that a restart takes tenths of a second, not the seconds that
Python and torch take to start.

Where no daemon answers, the launcher starts one, and tries to run a coordinator: one launcher's gets the job, the others' are
refused (exit code 3) and tried again, less and less often, so the job's coordinator outlives its host.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from types import FrameType

from ckptd_client.errors import ConfigError, DaemonUnavailableError
from ckptd_client.wire import default_socket, dial

_MAX_RESTARTS = 1_000_000  # the coordinator owns the budget: FACTS, "torch elastic"
_MONITOR_SECONDS = 0.1
_READY_SECONDS = 60.0  # for a daemon of ours to answer
_PROBE_SECONDS = 5.0  # between looks whether a daemon that isn't ours still answers
_COMPLETE_SECONDS = 10.0  # for our coordinator to tell the other nodes that the job is complete
_DRAIN_SECONDS = 40.0  # for a daemon to finish its uploads: more than its own limit
_RETRY_SECONDS = (0.5, 30.0)
_IN_USE_SECONDS = (5.0, 30.0)
_BAD_SETTINGS, _JOB_IN_USE = 2, 3  # exit codes of `ckptd`

_AGENT = "CKPTD_FORK_SERVER_OF"  # the agent's process id, for the fork server to recognize its parent by
_PR_SET_PDEATHSIG = 1  # prctl(2)
_ANYHOW_SECONDS = 5.0  # from a signal to the end, should nothing come of it
_ending = threading.Event()

# What a worker imports anyway. Loaded once, in the fork server; nothing here may start threads or touch a device.
_PRELOAD = [
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.distributed.elastic.multiprocessing.api",
    "torch._dynamo",  # torch.optim imports it at the first step: half of a warm restart
    "ckptd_client",
    "ckptd_client.run",
]


class Server:
    """A `ckptd` process that is kept running while it is wanted. It dies with this process, however that ends."""

    def __init__(self, name: str, command: list[str], wanted: Callable[[], bool]) -> None:
        """``wanted()`` is asked before each start."""
        self._name = name
        self._command = [*command, "--exit-with-parent"]
        self._wanted = wanted
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.last_exit: int | None = None
        # The parent that --exit-with-parent follows is, to the kernel, the thread that starts it: this one lasts.
        threading.Thread(target=self._keep, name=f"ckptd-{name}", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether its process lives just now."""
        return self._process is not None and self._process.poll() is None

    def finish(self, seconds: float) -> None:
        """If it runs, wait for it to end by itself."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL if it isn't gone after ``seconds``."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is None or not self.running:
            return
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _keep(self) -> None:
        delay = 0.0
        while not self._stopping.wait(delay):
            if not self._wanted():
                delay = _PROBE_SECONDS
                continue
            started = time.monotonic()
            self.last_exit = code = self._run_once()
            if code == 0 or self._stopping.is_set():
                return
            first, longest = _IN_USE_SECONDS if code == _JOB_IN_USE else _RETRY_SECONDS
            delay = first if time.monotonic() - started > longest else min(max(2 * delay, first), longest)
            if code != _JOB_IN_USE:
                _say(f"the {self._name} ended with exit code {code}; starting it again in {delay:.1f} s")

    def _run_once(self) -> int:
        with self._lock:
            if self._stopping.is_set():
                return 0
            # A session of its own keeps a terminal's Ctrl-C from it: workers first, then the servers.
            self._process = subprocess.Popen(self._command, stdout=sys.stderr, start_new_session=True)  # the user's own
        return self._process.wait()


def main() -> None:
    """The console script. Exit code: the job's outcome; 2 for bad usage or settings; 128 + n after signal n."""
    options = _parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end_by_signal)  # until torch's agent puts its own in place
    servers: list[Server] = []
    code = 1
    try:
        _start_fork_server(options.nproc_per_node)
        servers = _start_servers(options)
        code = _launch(options)
        if code == 0 and servers:
            servers[0].finish(_COMPLETE_SECONDS)
    except ConfigError as error:
        _say(str(error))
        code = 2
    finally:
        _ending.set()
        for server in reversed(servers):  # the coordinator commits what the daemon still uploads: it goes last
            server.stop(_DRAIN_SECONDS)
    sys.exit(code)


def run_script(script: str, arguments: list[str]) -> None:
    """In a worker, forked from the server: run the user's script as `python script.py …` would."""
    _die_with_parent()
    if (agent := multiprocessing.parent_process()) is not None and not agent.is_alive():
        os._exit(1)  # it went before we asked
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # the fork copied one state to all workers; `random` reseeds itself
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):  # torch's wrapper takes 0 for success, and waits forever after None
            raise


def _launch(options: argparse.Namespace) -> int:
    """Run torch's agent to the end of the job; returns the exit code."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "10")  # torch's 30 s is more than a preemption leaves

    from torch.distributed.elastic.multiprocessing.api import (
        SignalException,
    )  # not above: daemon and coordinator start meanwhile
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for handler in logging.getLogger("torch").handlers + logging.getLogger("torch.distributed").handlers:
        # torch's own formatter imports torch._dynamo for the first traceback: 2 to 4 s in the middle of the first restart
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    min_nodes, max_nodes = options.nnodes
    config = LaunchConfig(
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        nproc_per_node=options.nproc_per_node,
        run_id=options.job,
        rdzv_backend="ckptd",
        rdzv_configs={"join_timeout": options.join_timeout},
        max_restarts=_MAX_RESTARTS,
        monitor_interval=_MONITOR_SECONDS,
        start_method="forkserver",
        local_addr=options.local_addr,
    )
    try:
        elastic_launch(config, run_script)(options.script, options.arguments)
    except SignalException as ended:
        return 128 + int(ended.sigval)
    except SystemExit as end:  # the rendezvous found the job complete; or a signal came before torch's handlers
        return int(end.code or 0)
    except (ChildFailedError, RendezvousError) as error:
        _say(str(error))
        return 1
    return 0


def _start_servers(options: argparse.Namespace) -> list[Server]:
    """Start a daemon and a coordinator unless a daemon answers; returns when one does. Raises ConfigError.

    Whoever runs the daemon as a service runs the coordinator as one, too; a second one would only be refused, at a price.
    """
    if _daemon_answers():
        return []
    program = _find_ckptd()
    if program is None:
        raise ConfigError(f"no daemon answers on {default_socket()}, and there is no `ckptd` on PATH; set CKPTD_EXECUTABLE")
    where = ["--config", options.daemon_config] if options.daemon_config else []
    store = options.store
    if store is None and not where and not {"CKPTD_STORE__URL", "CKPTD_CONFIG"} & os.environ.keys():
        store = str(Path("ckptd-checkpoints").resolve())
    where += ["--store", store] if store else []
    every = ["--every", str(options.every)] if options.every else []
    coordinator = Server(
        "coordinator", [*program, "coordinator", "--job", options.job, "--exit-when-complete", *where, *every], lambda: True
    )
    daemon = Server("daemon", [*program, "daemon", *where], lambda: not _daemon_answers())
    servers = [coordinator, daemon]
    deadline = time.monotonic() + _READY_SECONDS
    while not _daemon_answers():
        if _BAD_SETTINGS in (daemon.last_exit, coordinator.last_exit) or time.monotonic() > deadline:
            for server in servers:
                server.stop(_DRAIN_SECONDS)
            raise ConfigError(f"daemon or coordinator didn't start: what they said is above socket={default_socket()}")
        time.sleep(0.05)
    return servers


def _find_ckptd() -> list[str] | None:
    if named := os.environ.get("CKPTD_EXECUTABLE"):
        return shlex.split(named)
    found = shutil.which("ckptd")
    return None if found is None else [found]


def _daemon_answers() -> bool:
    try:
        dial(default_socket(), 1.0).close()
    except DaemonUnavailableError:
        return False
    return True


def _start_fork_server(workers: int) -> None:
    """Begin to load torch for the workers. Called in the main thread, whose end is the agent's end to the kernel."""
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; the fork server and its workers inherit it
    os.environ[_AGENT] = str(os.getpid())
    multiprocessing.set_forkserver_preload(_PRELOAD)
    forkserver.ensure_running()


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, be it by SIGKILL.

    The chain is agent, fork server, worker. Python's fork server notices its agent's end by a pipe, but each worker holds that
    pipe open. torch asks for SIGINT in its workers, which is too polite for one that sits in a collective.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _end_by_signal(number: int, _frame: FrameType | None) -> None:
    # Python drops what is raised in a destructor or in a callback of C code, of which torch's import has many. Then nobody
    # would end us; servers and workers follow us, however we end.
    threading.Thread(target=_end_anyhow, args=(number,), name="ckptd-end", daemon=True).start()
    raise SystemExit(128 + number)


def _end_anyhow(number: int) -> None:
    if not _ending.wait(_ANYHOW_SECONDS):
        os._exit(128 + number)


def _say(text: str) -> None:
    sys.stderr.write(f"ckptd-run: {text}\n")


def _nodes(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    nodes = int(low), int(high or low)
    if not 1 <= nodes[0] <= nodes[1]:
        raise ValueError(text)
    return nodes


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ckptd-run", description="Run a training script on this node, elastic and checkpointed."
    )
    add = parser.add_argument
    add("--nnodes", type=_nodes, default=(1, 1), metavar="MIN:MAX", help="nodes the job may run on, or one number (default 1)")
    add("--nproc-per-node", type=int, default=1, metavar="N", help="workers on this node (default 1)")
    add("--job", metavar="ID", help="the job's id: the same on all nodes, and to resume it (default: the script's name)")
    add("--store", metavar="URL", help="where checkpoints go (default: ./ckptd-checkpoints, unless the settings say)")
    add("--every", type=int, metavar="STEPS", help="a snapshot every so many steps (default: as in the settings)")
    add("--daemon-config", metavar="FILE", help="settings (TOML) for the daemon and the coordinator that this starts")
    add("--local-addr", metavar="ADDR", help="this node's address for its peers (default: host name; 127.0.0.1 with one node)")
    add("--join-timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait for enough nodes (default 600)")
    add("script", help="the training script")
    add("arguments", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(arguments)
    if not Path(options.script).is_file():
        parser.error(f"there is no script {options.script}")
    options.job = options.job or re.sub(r"[^A-Za-z0-9_-]", "-", Path(options.script).stem)[:64]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", options.job):
        parser.error(f"--job must be 1 to 64 of A-Z a-z 0-9 _ and -, not {options.job!r}")
    if options.local_addr is None and options.nnodes[1] == 1:
        options.local_addr = "127.0.0.1"
    return options


if os.environ.get(_AGENT) == str(os.getppid()):
    _die_with_parent()  # this is the fork server, loading _PRELOAD

if __name__ == "__main__":
    main()
