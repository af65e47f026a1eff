"""The plain data plane's ledger, and its outcomes: nothing is forgotten before it was said."""

from __future__ import annotations

import asyncio

import models
import numpy as np
import pytest

from batching._native.calls import Handle
from batching._native.scheduler import Scheduler
from batching.errors import RunnerError
from batching.runner import outcomes as module
from batching.runner.ledger import Entry, Ledger
from batching.runner.outcomes import Outcomes, prepare
from batching.runner.wire import Buffer, Code, Failure, Rows, Type
from batching.signature import Signature

FAILED = Failure(0, Code.CLOSED, "the dispatcher failed")


class Origin:
    """Has no memory for an outcome at first."""

    client = 0

    def __init__(self) -> None:
        self.outcomes: list[object] = []
        self.short = True

    def answer(self, parts) -> None:
        self._note(parts)

    def fail(self, failure) -> None:
        self._note(failure)

    def _note(self, outcome: object) -> None:
        if self.short:
            self.short = False
            raise MemoryError
        self.outcomes.append(outcome)


def buffers() -> list[Buffer]:
    return [Buffer(8, [memoryview(bytes(8))], None)]


@pytest.mark.parametrize("ending", ["answered", "invalid"])
def test_a_call_whose_outcome_could_not_be_made_is_there_to_be_failed(ending: str) -> None:
    ledger, origin = Ledger(Scheduler(rule="greedy"), 10), Origin()
    ledger.admit(0, Entry(origin, 1, b"key", buffers()))
    batch = ledger.next_batch(0, 1, 1)
    assert batch is not None
    result = Rows(Type.RESULT, batch.id, 1, b"key", buffers())
    end = {"answered": (ledger.answered, result), "invalid": (ledger.ended, "invalid", FAILED)}[ending]
    with pytest.raises(MemoryError):
        end[0](1, batch.id, *end[1:])
    ledger.fail_all(FAILED)
    assert origin.outcomes == [FAILED]
    assert len(ledger) == 0


def test_outcomes_that_could_not_be_told_are_told_at_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = Signature(models.Echo()._run_batch)
    outcomes, handle, submitted = Outcomes(signature, allow_pickle=False), Handle(), []

    class Engine:
        max_latency_ms = None
        submit = staticmethod(submitted.append)
        cancel = staticmethod(lambda call: None)

    def short(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    async def main() -> None:
        handle._bind(Engine())
        call = asyncio.ensure_future(handle.async_run(np.zeros(2)))
        await asyncio.sleep(0)
        outcomes.fail(
            prepare(signature, submitted[0], allow_pickle=False), Failure(0, Code.RUNNER_ERROR, "it failed")
        )
        monkeypatch.setattr(module, "settle", short)
        with pytest.raises(MemoryError):
            outcomes.settle()
        outcomes.settle()
        with pytest.raises(RunnerError, match="it failed"):
            await call

    asyncio.run(main())
