"""A committed checkpoint, open for reading through this node's daemon. No part in any world, no collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckptd_client.errors import ProtocolError
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, WORLD_MAX, Hello
from ckptd_client.messages.restoring import ReadInfo, ReadList, ReadListed, ReadOpen, Stored, Want
from ckptd_client.receive import receive
from ckptd_client.session import ASK_SECONDS, CONNECT_SECONDS, REQUEST_SECONDS, Session
from ckptd_client.wire import default_socket

if TYPE_CHECKING:
    import torch


class Opened:
    """Pinned until closed, or this process ends. By FQN, ``tensors`` are those of global scope, ``own`` those of ``rank``."""

    def __init__(self, job: str, step: int | None, seq: int | None = None, rank: int = 0) -> None:
        """The commit of record ``seq``, else the last one of ``step``, else the newest.

        Raises RestoreError when there is none, DaemonUnavailableError and its kin.
        """
        self.rank = rank
        hello = Hello(PROTOCOL_VERSION, "reader", job, rank, WORLD_MAX, 0, "", (0, 0), 0)
        self._session = Session(default_socket(), lambda: hello, _ignore, lambda: None)
        self._session.connect(CONNECT_SECONDS)
        try:
            request = ReadOpen(self._session.next_id(), -1 if step is None else step, -1 if seq is None else seq)
            info, _ = self._session.request(request, ASK_SECONDS)
            if not isinstance(info, ReadInfo):
                raise ProtocolError(f"the daemon answered ReadOpen with {type(info).__name__}")
            self.info = info
            listed = self._list(info.tensors)
            self.tensors = {tensor.fqn: tensor for tensor in listed if tensor.rank < 0}
            self.own = {tensor.fqn: tensor for tensor in listed if tensor.rank == rank}
        except BaseException:
            self._session.close()
            raise

    def _list(self, count: int) -> list[Stored]:
        found: list[Stored] = []
        while len(found) < count:
            listed, _ = self._session.request(ReadList(self._session.next_id(), len(found)), REQUEST_SECONDS)
            if not isinstance(listed, ReadListed) or not listed.tensors:
                raise ProtocolError(f"the daemon answered ReadList with {type(listed).__name__}, and left tensors out")
            found += listed.tensors
        return found

    def read(self, wants: list[Want], memory: Sequence[torch.Tensor]) -> None:
        """Have every want delivered into its memory, a flat uint8 tensor, verified. Raises RestoreError and its kin."""
        receive(self._session, wants, memory)

    def close(self) -> None:
        """Let it go."""
        self._session.close()


def _ignore(message: Message) -> None:
    """A reader has no snapshots to hear of."""
