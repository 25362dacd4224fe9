"""Keys are computed from identities; nothing else gets into them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.errors import CkptdError, ConfigError, CorruptError
from ckptd.model import keys
from ckptd.model.ids import Attempt, Generation, Snapshot

ATTEMPT = Attempt(Snapshot(Generation(3, 2), 100), 1)
HASH = "0123456789abcdef" * 4


def test_keys_are_what_format_md_says() -> None:
    assert keys.log_key("job", 12) == "job/log/00000000000000000012"
    assert keys.log_key("job", 12).startswith(keys.log_prefix("job"))
    assert keys.state_key("job", 12, HASH) == f"job/state/00000000000000000012-{HASH}"
    assert keys.seq_of_state(keys.state_key("job", 12, HASH).removeprefix(keys.state_prefix("job"))) == 12
    assert keys.seq_of_state(HASH) is None
    assert keys.manifest_key("job", HASH) == f"job/manifest/{HASH}"
    assert keys.layout_key("job", Generation(3, 2), HASH) == f"job/layout/3-2/{HASH}"
    assert keys.segment_key("job", ATTEMPT, "node-1.ab12", 7) == "job/data/3-2.100.1/node-1.ab12-7.seg"
    assert keys.index_key("job", ATTEMPT, HASH) == f"job/data/3-2.100.1/{HASH}.idx"
    assert keys.index_key("job", ATTEMPT, HASH).startswith(keys.data_prefix("job", ATTEMPT))
    assert keys.latest_key("job") == "job/LATEST"
    assert keys.leader_key("job") == "job/LEADER"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a b", "x" * 129, "-a", "é", "a\n"])
def test_a_writer_cannot_leave_its_place(bad: str) -> None:
    with pytest.raises(CorruptError):
        keys.segment_key("job", ATTEMPT, bad, 0)


@pytest.mark.parametrize("bad", ["", HASH[:-1], HASH.upper(), "../" * 21 + "x", HASH + "\n"])
@pytest.mark.parametrize(
    "key",
    [
        lambda bad: keys.state_key("job", 0, bad),
        lambda bad: keys.manifest_key("job", bad),
        lambda bad: keys.layout_key("job", Generation(1, 1), bad),
    ],
)
def test_a_hash_is_a_hash(key: Callable[[str], str], bad: str) -> None:
    with pytest.raises(CorruptError):
        key(bad)


@pytest.mark.parametrize("bad", [-1, 10**15, True])
def test_a_number_is_in_bounds(bad: int) -> None:
    with pytest.raises(CorruptError):
        keys.log_key("job", bad)


@pytest.mark.parametrize("bad", ["", "a/b", "..", "x" * 65])
def test_a_job_is_a_job(bad: str) -> None:
    with pytest.raises(ConfigError):
        keys.latest_key(bad)


@given(st.text(), st.text(), st.integers())
def test_any_text_gives_a_plain_key_or_an_error(job: str, writer: str, n: int) -> None:
    try:
        key = keys.segment_key(job, ATTEMPT, writer, n)
    except CkptdError:
        return
    assert key.count("/") == 3 and key.isascii() and ".." not in key.split("/")
