"""The codec's threads give way."""

from __future__ import annotations

import os
import threading

import pytest

from ckptd.pipeline.threads import codec_pool


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize("nice", [0, 7, 19])
def test_only_the_codecs_threads_are_nicer(nice: int) -> None:
    before = niceness()
    with codec_pool(2, nice) as pool:
        assert pool.submit(niceness).result() == max(nice, before)
    assert niceness() == before


def test_who_is_nicer_already_stays_so() -> None:
    found = []

    def nicer() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        with codec_pool(1, 3) as pool:  # its thread inherits
            found.append(pool.submit(niceness).result())

    thread = threading.Thread(target=nicer)
    thread.start()
    thread.join()
    assert found == [15]
