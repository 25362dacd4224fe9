from __future__ import annotations

import pytest

from tests.commit.faulty_store import FaultyStore
from tests.commit.logs import built


@pytest.fixture(scope="module")
def long_log() -> FaultyStore:
    return built(10_000)
