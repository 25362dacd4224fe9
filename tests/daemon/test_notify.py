"""The service manager's protocol, against a manager of the test's own on a real socket, with a real daemon under it."""

from __future__ import annotations

import array
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptd.notify import Notifier, kept_descriptors, notifier
from ckptd_client.arena import HELD, Arena
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Failed, Hello, Welcome
from ckptd_client.messages.saving import Item, Notice, Register, Resume, Resumed
from ckptd_client.wire import Connection, dial
from tests.waiting import eventually_sync

# exec after the descriptors are where the protocol wants them, as a service manager does it
LAUNCH = """
import os, sys
kept = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [os.dup2(fd, 200 + at) for at, fd in enumerate(kept)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "ckptd", "daemon", *sys.argv[2:]])
"""


# a trainer of job "dead" that seals a slot and waits to be killed
TRAINER = """
import os, pathlib, sys, time
from tests.daemon.test_notify import register, say
trainer = say(pathlib.Path(sys.argv[1]), "dead")
register(trainer, b"bye")
print("sealed", flush=True)
time.sleep(600)
"""


class Manager:
    """What systemd does for one unit: it listens, keeps descriptors, and starts the service again with them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.kept: dict[str, int] = {}
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        while True:
            text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4 * 16))
            if not text:
                return
            fds = array.array("i")
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            lines = dict(line.split("=", 1) for line in text.decode().splitlines())
            self.told += [line for line in text.decode().splitlines() if not line.startswith("FDPOLL")]
            if lines.get("FDSTORE") == "1":
                self.kept[lines["FDNAME"]] = fds[0]
            elif lines.get("FDSTOREREMOVE") == "1" and (fd := self.kept.pop(lines["FDNAME"], None)) is not None:
                os.close(fd)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        """Start the service with what is kept."""
        environment = {**os.environ, "NOTIFY_SOCKET": self.address, "LISTEN_FDNAMES": ":".join(self.kept), **more}
        environment["LISTEN_FDS"] = str(len(self.kept))
        fds = list(self.kept.values())
        numbers = ",".join(map(str, fds))
        return subprocess.Popen([sys.executable, "-c", LAUNCH, numbers, *arguments], env=environment, pass_fds=fds)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._listening.join()
        self._socket.close()
        for fd in self.kept.values():
            os.close(fd)


@pytest.mark.parametrize("abstract", [False, True])
def test_messages(tmp_path: Path, abstract: bool) -> None:
    manager = Manager(f"@ckptd-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    to = notifier(environment)
    assert environment == {"HOME": "/"} and to.watchdog_seconds == 2.0
    to.ready()
    to.status("two\nlines")
    to.alive()
    to.alive()  # too soon after the last one
    to.stopping()
    with open("/dev/null", "rb") as file:
        to.keep("abc", file.fileno())
    wanted = ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1", "FDSTORE=1", "FDNAME=abc"]
    eventually_sync(lambda: manager.told == wanted and bool(manager.kept), "all messages")
    assert os.path.samestat(os.fstat(manager.kept["abc"]), os.stat("/dev/null"))
    to.let_go("abc")
    eventually_sync(lambda: not manager.kept, "the descriptor's end")
    manager.close()
    to.ready()  # nobody is there any more: no harm


def test_without_a_service_manager() -> None:
    to = notifier({"WATCHDOG_USEC": "1000000"})
    assert to.watchdog_seconds is None
    to.ready()
    assert notifier({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier("@x", 1.0).watchdog_seconds == 1.0


def test_descriptors_of_others_are_not_ours() -> None:
    for environment in (
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "100000"},
    ):
        assert kept_descriptors(environment) == {} and environment == {}


def say(path: Path, job: str = "job") -> Connection:
    """A trainer's hello."""
    connection = dial(path, 10.0)
    pidfd = os.pidfd_open(os.getpid())
    connection.send(Hello(PROTOCOL_VERSION, "trainer", job, 0, 1, 0, "alone-1", (1, 1), 0), (pidfd,))
    os.close(pidfd)
    assert isinstance(connection.receive()[0], Welcome)
    return connection


def answer(trainer: Connection) -> tuple[Message, list[int]]:
    """The next message that isn't for a person."""
    while isinstance((got := trainer.receive())[0], Notice):
        pass
    return got


def register(trainer: Connection, body: bytes) -> Arena:
    """Get an arena, and seal step 7 in its slot 1 without a word."""
    item = Item("x", "object", "global", "object", (), (), (), 0, 4096)
    trainer.send(Register(1, 2, 4096, [item]))
    _, (fd,) = answer(trainer)
    arena = Arena(fd)
    os.close(fd)
    arena.begin(1)
    arena.slot(1)[: len(body)] = body
    arena.seal(1, (1, 1), 7, [len(body)])
    return arena


def test_a_sealed_slot_survives_the_loss_of_the_directory(tmp_path: Path) -> None:
    """SIGKILL, and the arena directory is wiped (as by PrivateTmp, RuntimeDirectory, RemoveIPC): a kept descriptor is all."""
    manager, arenas, path = Manager(str(tmp_path / "notify")), tmp_path / "arenas", tmp_path / "daemon.sock"
    arguments = ["--store", str(tmp_path / "store"), "--node", "n", "--arena-directory", str(arenas), "--socket", str(path)]
    daemon = manager.start(*arguments, WATCHDOG_USEC="400000")
    try:
        eventually_sync(lambda: "READY=1" in manager.told, "the daemon is ready")
        trainer = say(path)
        arena = register(trainer, b"hello")
        command = [sys.executable, "-c", TRAINER, str(path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert child.stdout is not None and child.stdout.readline() == b"sealed\n"
        daemon.kill()  # before it was told
        daemon.wait()
        child.kill()
        child.communicate()
        shutil.rmtree(arenas)
        eventually_sync(lambda: len(manager.kept) == 2, "the descriptors")
        manager.told.clear()

        daemon = manager.start(*arguments, WATCHDOG_USEC="400000")
        eventually_sync(lambda: "READY=1" in manager.told, "the next daemon is ready")
        data = tmp_path / "store" / "job" / "data" / "1-1.7.0"
        eventually_sync(lambda: any(path.read_bytes() == b"hello" for path in data.glob("n.*.seg")), "the upload")
        data = tmp_path / "store" / "dead" / "data" / "1-1.7.0"  # its trainer is dead, too
        eventually_sync(lambda: any(path.read_bytes() == b"bye" for path in data.glob("n.*.seg")), "the other upload")
        eventually_sync(lambda: manager.told.count("WATCHDOG=1") >= 3, "a fed watchdog")
        trainer = say(path)
        trainer.send(Resume(1, arena.id))
        resumed = answer(trainer)[0]
        assert isinstance(resumed, Resumed) and resumed.free == [0]
        assert (arena.look(1).state, arena.look(1).number) == (HELD, 0)
        trainer.send(Resume(2, "0" * 32))
        failed = answer(trainer)[0]
        assert isinstance(failed, Failed) and "no such arena" in failed.message
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
        manager.close()
