"""Memory that is lent to requests, and comes back."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ckptd.pipeline.loans import Bodies, Loan, all_returned


async def test_a_body_is_used_again_when_nothing_refers_to_it() -> None:
    bodies = Bodies(10_000, 2)
    first = await bodies.take()
    first[:5] = b"first"
    piece = first[:5]
    first.release()
    second = await bodies.take()
    second[:5] = b"other"
    assert piece == b"first"
    waiting = asyncio.create_task(bodies.take())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()  # there is no third, however long the first is read
    await asyncio.to_thread(piece.release)
    third = await asyncio.wait_for(waiting, 10)
    assert third[:5] == b"first"  # the very memory
    assert second[:5] == b"other"
    assert third.nbytes == 10_000


async def test_a_body_that_only_a_cycle_holds_is_collected() -> None:
    class Node:
        pass

    bodies = Bodies(100, 1)
    node = Node()
    node.me, node.part = node, await bodies.take()  # type: ignore[attr-defined]
    del node
    gc.disable()
    try:
        await asyncio.wait_for(bodies.take(), 10)
    finally:
        gc.enable()


async def test_a_loan_is_over_when_the_last_view_is_gone() -> None:
    memory = bytearray(100)
    loan = Loan(memoryview(memory))
    part = loan.view[10:20]
    waiting = asyncio.create_task(all_returned([loan], None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()  # changes nothing, until it is over
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    part.release()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 10)
    memory.append(0)  # would be refused while any view of it exists


async def test_what_only_a_cycle_holds_is_collected() -> None:
    class Node:
        pass

    loan = Loan(memoryview(bytearray(100)))
    node = Node()
    node.me, node.part = node, loan.view[:10]  # type: ignore[attr-defined]
    del node
    gc.disable()
    try:
        await asyncio.wait_for(all_returned([loan], None), 10)
    finally:
        gc.enable()


async def test_errors_that_are_on_their_way_let_go() -> None:
    loan = Loan(memoryview(bytearray(100)))

    def fail() -> None:
        part = loan.view[:10]
        try:
            raise KeyError(part.nbytes)
        except KeyError as error:
            held = loan.view[20:30]
            raise ValueError(held.nbytes) from error

    try:
        fail()
    except ValueError as error:
        async with asyncio.timeout(10):
            await all_returned([loan], ExceptionGroup("several", [error]))
