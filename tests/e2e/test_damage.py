"""Damaged checkpoints under a real job of two nodes: all ranks go back together, loudly, and never to step 0 unasked.

On the way everything between daemons and coordinator goes over TLS, with a token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from ckptd.commit.catalog import CatalogEntry, Status, catalog
from ckptd.commit.log import CommitLog
from ckptd.demo.cluster import Cluster, Plan
from ckptd.model.records import Quarantine, decode
from ckptd.store.directory import DirectoryStore
from tests.coordinator.test_access import TOKEN, Tls, secret

JOB = "damaged"
SECONDS = 90.0


class Two:
    """Nodes a and b with a rank each, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.root, self.orders = directory / "store", directory / "orders"
        self.orders.write_text("train 0")
        tls, token = Tls(directory / "tls"), secret(directory / "token", TOKEN)
        environment = {
            "CKPTD_COORDINATOR__TOKEN_FILE": str(token),
            "CKPTD_COORDINATOR__TLS_CERT_FILE": str(tls.cert),
            "CKPTD_COORDINATOR__TLS_KEY_FILE": str(tls.key),
            "CKPTD_DAEMON__TOKEN_FILE": str(token),
            "CKPTD_DAEMON__TLS_CA_FILE": str(tls.ca),
            "CKPTD_COORDINATOR__BACKOFF_SECONDS": "0.1",
        }
        script = Path(__file__).with_name("obedient.py")
        plan = Plan(JOB, str(self.root), script, [str(self.orders)], min_nodes=2, environment=environment)
        self.cluster = Cluster(plan, directory, ["--every", "2"])

    def start(self) -> None:
        self.cluster.start_coordinator()
        for name in "ab":
            self.cluster.node(name).start()

    def lines(self, source: str, pattern: str) -> list[re.Match[str]]:
        return [found for line in self.cluster.output if source in line.source and (found := re.search(pattern, line.text))]

    def await_lines(self, source: str, pattern: str, count: int) -> list[re.Match[str]]:
        self.cluster.output.wait_for(f"{count} × {pattern}", lambda: len(self.lines(source, pattern)) >= count, SECONDS)
        return self.lines(source, pattern)

    def saved(self, step: int) -> str:
        """Both ranks saved it; its digest."""
        digests = {found[1] for found in self.await_lines("agent", rf"saved step={step} digest=(\w+)", 2)}
        assert len(digests) == 1
        return digests.pop()

    def fail_and_restore(self, number: int, step: int, digest: str) -> None:
        """Workers fail; what both ranks restore then is this."""
        before = len(self.lines("agent", r"restored step="))
        self.orders.write_text(f"fail {number}")
        found = self.await_lines("agent", r"rank (\d) of 2 restored step=(\d+) digest=(\w+)", before + 2)[before:]
        assert sorted(each.groups() for each in found) == [("0", str(step), digest), ("1", str(step), digest)]

    def commits(self) -> dict[int, CatalogEntry]:
        return {entry.step: entry for entry in catalog(asyncio.run(CommitLog(DirectoryStore(self.root), JOB).load()))}

    def reason(self, step: int) -> str:
        """Of the record that quarantined it."""
        entry = self.commits()[step]
        assert entry.status is Status.QUARANTINED
        for path in sorted((self.root / JOB / "log").iterdir()):
            body = decode(int(path.name), path.read_bytes()).body
            if isinstance(body, Quarantine) and body.n == entry.seq:
                return body.reason
        raise AssertionError("no record says so")

    def files(self, step: int, suffix: str) -> list[Path]:
        return sorted((self.root / JOB / "data" / str(self.commits()[step].attempt)).glob(f"*{suffix}"))


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0x04
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def hurt(path: Path, how: Callable[[Path], None]) -> str:
    how(path)
    return path.name


def test_damage_is_named_and_all_ranks_go_back_together(tmp_path: Path) -> None:
    two = Two(tmp_path)
    try:
        two.start()
        two.orders.write_text("train 10")
        digests = {step: two.saved(step) for step in (2, 4, 6, 8, 10)}

        segment = hurt(max(two.files(10, ".seg"), key=lambda path: path.stat().st_size), flip)
        two.fail_and_restore(1, 8, digests[8])
        assert segment in two.reason(10) and "stored bytes don't match their hash" in two.reason(10)
        assert len(two.lines("agent", r"WORK IS LOST: 2 steps are lost: going on from step 8")) == 2
        assert two.lines("daemon", rf"(?=.*CHECKPOINT DAMAGED).*{segment}")
        assert two.lines("coordinator", "NO RANK RESTORES") and two.lines("coordinator", "a commit is quarantined")

        missing = hurt(two.files(8, ".seg")[0], Path.unlink)
        index = hurt(two.files(6, ".idx")[0], cut)
        two.fail_and_restore(2, 4, digests[4])
        assert missing in two.reason(8) and "is missing" in two.reason(8)
        assert index in two.reason(6)
        assert len(two.lines("agent", r"WORK IS LOST: 6 steps are lost: going on from step 4")) == 2

        missing = hurt(two.files(4, ".seg")[0], Path.unlink)
        manifest = hurt(two.root / JOB / "manifest" / two.commits()[2].manifest, flip)
        two.orders.write_text("fail 3")
        for name in "ab":
            agent = two.cluster.node(name).agent
            assert agent is not None and agent.wait(SECONDS) == 1
            (said,) = two.await_lines(f"{name}-agent", r"^ckptd-run: (the job is stopped: .*)", 1)
            assert "every checkpoint that it had is quarantined" in said[1] and "must not start at step 0" in said[1]
        assert all(entry.status is Status.QUARANTINED for entry in two.commits().values())
        assert missing in two.reason(4) and manifest in two.reason(2)
        assert {found[1] for found in two.lines("agent", r"restored step=(\d+)")} == {"0", "8", "4"}
        assert len(two.lines("agent", r"restored step=0 ")) == 2  # at the start
    finally:
        two.cluster.close()
