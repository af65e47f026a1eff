"""The caller's end of a connection: what leaves when, and in what memory answers are."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import models
import numpy as np
import pytest

pytest.importorskip("batching._native.pipe", exc_type=ImportError)

from batching import connect, runner_service
from batching._native import link, wire
from batching._native.calls import Handle
from batching._native.pipe import Pipe, PipeEngine
from batching.errors import RunnerError
from batching.payloads import Fixed, Var
from batching.runner.native import native_plane
from batching.signature import Signature


class Sent(list):
    """The messages that left, each a list of frames."""

    def take(self, address: int) -> None:
        self.append(link.frames_of(address))
        link.drop(address)


def test_a_packet_leaves_before_the_end_of_the_turn_once_its_frames_are_a_megabyte() -> None:
    sent = Sent()
    pipe = Pipe(sent.take, lambda: None, RuntimeError)
    pipe.open()
    handle = Handle()
    signature = Signature(models.Echo()._run_batch)
    handle._bind(PipeEngine(pipe, signature, None, allow_pickle=False, fixed=Fixed, var=Var))

    async def call_at_once() -> None:
        calls = [asyncio.ensure_future(handle.async_run(np.zeros(400_000, np.uint8))) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()

    asyncio.run(call_at_once())
    assert [len(frames) - 1 for frames in sent if len(frames) > 1] == [3, 1]


class Calls:
    """Calls of one loop through a pipe; `run` gives their outcomes once `then` was called."""

    def __init__(self, error_of=RuntimeError, send=None) -> None:
        self.sent = Sent()
        self.pipe = Pipe(send or self.sent.take, lambda: None, error_of)
        self.pipe.open()
        self.handle = Handle()
        self.signature = Signature(models.Echo()._run_batch)
        engine = PipeEngine(self.pipe, self.signature, None, allow_pickle=False, fixed=Fixed, var=Var)
        self.handle._bind(engine)

    def run(self, count: int, then) -> list[object]:
        async def main() -> list[object]:
            calls = [asyncio.ensure_future(self.handle.async_run(np.zeros(2))) for _ in range(count)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            then()
            return await asyncio.gather(*calls, return_exceptions=True)

        return asyncio.run(main())

    def receive(self, *records: tuple) -> None:
        message = link.new_message(wire.pack(records))
        self.pipe.receive(message)
        link.drop(message)


FAILED = (4, -1, -1, b"it failed", b"ValueError", b"", b"")


def test_an_error_that_cannot_be_made_is_an_outcome_too() -> None:
    def no_error(*_: object) -> BaseException:
        raise MemoryError

    calls = Calls(no_error)
    outcomes = calls.run(2, lambda: calls.receive(*[(5, 1 << 32 | place, FAILED) for place in (62, 63)]))
    assert [type(outcome) for outcome in outcomes] == [MemoryError] * 2
    assert len(calls.pipe) == 0


@pytest.mark.parametrize("failing", range(40))
def test_every_call_has_an_outcome_whichever_piece_of_memory_cannot_be_had(failing: int) -> None:
    memory = pytest.importorskip("_testcapi")
    calls = Calls()
    key = calls.signature.encode_result(np.zeros((1, 2)), 1).key
    rows = (-1, 1, 1, 0, key, b"", [(16, None, bytes(16))])
    calls.run(1, lambda: calls.receive((4, 1 << 32 | 63, rows)))  # what answers look like is known now
    message = link.new_message(
        wire.pack(
            [(4, 2 << 32 | 63, rows), (5, 1 << 32 | 62, FAILED), (9, 5, None), (5, 1 << 32 | 61, FAILED)]
        )
    )

    def short() -> None:
        memory.set_nomemory(failing, failing + 1)
        try:
            calls.pipe.receive(message)
        except MemoryError:
            calls.pipe.lose()
        finally:
            memory.remove_mem_hooks()

    outcomes = calls.run(3, short)
    link.drop(message)
    assert isinstance(outcomes[0], (np.ndarray, MemoryError, RunnerError))
    assert all(isinstance(outcome, (RuntimeError, MemoryError, RunnerError)) for outcome in outcomes[1:])
    assert len(calls.pipe) == 0


def test_calls_whose_packet_could_not_be_given_away_fail() -> None:
    def send(address: int) -> None:
        link.drop(address)
        raise MemoryError

    calls = Calls(send=send)
    with pytest.raises(MemoryError):
        calls.handle.run(np.zeros(2))
    assert len(calls.pipe) == 0


@pytest.mark.slow
@pytest.mark.skipif(not native_plane(), reason="of the native plane")
@pytest.mark.parametrize("way", ["service", "connected"])
def test_a_large_answer_is_a_view_of_what_came_and_the_callers_own(way: str) -> None:
    with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as connected:
        handle = service if way == "service" else connected
        rows = [np.full(100_000, number, np.float64) for number in range(6)]
        handle.run(rows[0])  # what answers look like is known after the first
        with ThreadPoolExecutor(len(rows)) as pool:
            answers = list(pool.map(handle.run, rows))
    for number, answer in enumerate(answers):
        assert answer.base is not None
        assert answer.flags.writeable
        assert answer.flags.aligned
        answer += number
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, np.full(100_000, 3.0 * number))
