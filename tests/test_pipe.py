"""The caller's end of a connection: what leaves when, and in what memory answers are."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import models
import numpy as np
import pytest

pytest.importorskip("batching._native.pipe", exc_type=ImportError)

from batching import connect, runner_service
from batching._native import link
from batching._native.calls import Handle
from batching._native.pipe import Pipe, PipeEngine
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
