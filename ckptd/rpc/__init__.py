"""Calls between hosts: the daemons of a job and its coordinator."""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Of coordinator.proto. Both sides must speak the same; the coordinator says which one is older."""
