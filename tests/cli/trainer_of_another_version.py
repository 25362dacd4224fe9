"""A trainer whose ckptd-client speaks a later protocol."""

from __future__ import annotations

import ckptd_client.member
import ckptd_client.session

ckptd_client.member.PROTOCOL_VERSION = ckptd_client.session.PROTOCOL_VERSION = 99

if __name__ == "__main__":
    ckptd_client.connect("job")
