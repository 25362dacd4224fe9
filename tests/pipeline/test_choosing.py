"""Whether encoding pays: the rule, and the meter that feeds it, in simulated machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.pipeline.choose import Rates, encoded_seconds, encoding_pays, raw_seconds
from ckptd.pipeline.meter import Meter, idle_core_seconds
from tests.clock import FakeClock

RATES = st.builds(
    Rates,
    link_bytes_per_second=st.floats(1e5, 1e11),
    idle_cores=st.floats(0, 64),
    encode_seconds_per_byte=st.floats(1e-11, 1e-7),
    stored_per_raw=st.floats(0.01, 1.0),
    threads=st.integers(1, 64),
)


@given(RATES, st.floats(1.0, 100.0))
def test_what_speaks_for_encoding_never_speaks_against_it(rates: Rates, factor: float) -> None:
    better = [
        replace(rates, link_bytes_per_second=rates.link_bytes_per_second / factor),
        replace(rates, idle_cores=rates.idle_cores * factor),
        replace(rates, encode_seconds_per_byte=rates.encode_seconds_per_byte / factor),
        replace(rates, stored_per_raw=rates.stored_per_raw / factor),
    ]
    for one in better:
        assert encoded_seconds(one) / raw_seconds(one) <= encoded_seconds(rates) / raw_seconds(rates) * (1 + 1e-9)
        assert encoding_pays(one) or not encoding_pays(rates)


@given(RATES)
def test_nothing_is_sent_faster_than_the_link_or_encoded_faster_than_by_all_threads(rates: Rates) -> None:
    assert encoded_seconds(rates) >= rates.stored_per_raw / rates.link_bytes_per_second
    assert encoded_seconds(rates) >= rates.encode_seconds_per_byte / rates.threads
    assert not encoding_pays(replace(rates, stored_per_raw=1.0))


def test_idle_seconds_are_read() -> None:
    assert idle_core_seconds() > 0


CONCURRENCY, SEGMENT = 8, 16e6
_DONE, _DONE_BYTES = 1e-9, 1.0  # rounding


@dataclass
class Machine:
    """Cores that encode and send at once, each its share; a byte that is sent costs ``send`` core-seconds here."""

    link: float
    send: float
    encode: float = 1.3e-9
    ratio: float = 0.83
    cores: float = 2.0
    threads: int = 2
    clock: FakeClock = field(default_factory=FakeClock)
    idle: float = 0.0

    def save(self, meter: Meter, codec: str, segments: int) -> float:
        """Seconds of an upload of so many segments."""
        began = self.clock.monotonic()
        todo, encoding, ready = segments, [], []  # type: tuple[int, list[float], list[float]]
        sending: list[tuple[float, AbstractContextManager[None]]] = []
        with meter.upload():
            while todo or encoding or ready or sending:
                while todo and len(encoding) + len(ready) + len(sending) < CONCURRENCY + 2 and len(encoding) < self.threads:
                    todo -= 1
                    if meter.encode_next() if codec == "auto" else codec == "encoded":
                        encoding.append(SEGMENT * self.encode)
                    else:
                        ready.append(SEGMENT)
                while ready and len(sending) < CONCURRENCY:
                    size = ready.pop(0)
                    sending.append((size, meter.put(int(size))))
                    sending[-1][1].__enter__()
                wanted = len(encoding) + (self.link * self.send if sending else 0.0)
                share = min(1.0, self.cores / wanted) if wanted else 1.0
                each = self.link * share / max(len(sending), 1)
                seconds = min([left / share for left in encoding] + [left / each for left, _ in sending])  # to the next event
                encoding = [left - share * seconds for left in encoding]
                sending = [(left - each * seconds, put) for left, put in sending]
                self.clock.advance(seconds)
                self.idle += (self.cores - wanted * share) * seconds
                for _ in [left for left in encoding if left <= _DONE]:
                    ready.append(SEGMENT * self.ratio)
                    meter.encoded(int(SEGMENT), int(SEGMENT * self.ratio), SEGMENT * self.encode)
                encoding = [left for left in encoding if left > _DONE]
                for _, put in [one for one in sending if one[0] <= _DONE_BYTES]:
                    put.__exit__(None, None, None)
                sending = [one for one in sending if one[0] > _DONE_BYTES]
        return self.clock.monotonic() - began

    def meter(self) -> Meter:
        return Meter(CONCURRENCY, self.threads, self.clock, lambda: self.idle)

    def saves(self, codec: str, segments: int) -> Iterator[float]:
        meter = self.meter()
        while True:
            yield self.save(meter, codec, segments)
            self.clock.advance(10.0)
            self.idle += 10.0 * self.cores


def steady(machine: Machine, codec: str, segments: int) -> float:
    """Mean seconds of a save, once the first one has taught what there is to know."""
    saves = machine.saves(codec, segments)
    next(saves)
    return sum(next(saves) for _ in range(8)) / 8


@pytest.mark.parametrize("segments", [18, 64])
@pytest.mark.parametrize("encode", [0.5e-9, 1.3e-9])
@pytest.mark.parametrize(
    ("link", "send"),
    [(50e6, 2.4e-9), (150e6, 2.4e-9), (4e9, 2.4e-9), (50e6, 0.3e-9), (400e6, 0.3e-9), (1.2e9, 0.3e-9), (4e9, 0.3e-9)],
)
def test_auto_is_about_as_fast_as_the_better_of_both(link: float, send: float, encode: float, segments: int) -> None:
    """``send`` is 2.4 core-seconds per GB where the store is on the same cores, 0.3 where it is elsewhere."""
    machine = Machine(link, send, encode)
    better = min(steady(replace(machine, clock=FakeClock()), codec, segments) for codec in ("raw", "encoded"))
    assert steady(machine, "auto", segments) <= 1.05 * better


def test_a_link_that_has_changed_is_noticed() -> None:
    machine = Machine(50e6, 2.4e-9)
    meter = machine.meter()
    for link in (50e6, 4e9, 50e6):
        machine.link = link
        for _ in range(3):
            machine.save(meter, "auto", 64)
        alone = replace(machine, clock=FakeClock())
        better = min(alone.save(alone.meter(), codec, 64) for codec in ("raw", "encoded"))
        assert machine.save(meter, "auto", 64) <= 1.06 * better


def test_incompressible_state_stays_raw() -> None:
    machine = Machine(50e6, 0.3e-9, ratio=1.0)
    meter = machine.meter()
    machine.save(meter, "auto", 64)
    assert sum(meter.encode_next() for _ in range(610)) == 10  # trials
