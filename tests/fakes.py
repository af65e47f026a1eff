"""Stand-ins that a test drives by hand: a clock, and a model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from batching import Runner

# How long a test waits for what must happen; reached only when it fails.
PATIENCE_S = 20.0


class FakeClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, *, ms: float = 0.0, ns: int = 0) -> None:
        self.now_ns += int(ms * 1e6) + ns


_STANDS_STILL = FakeClock()


class ExpectedBatch:
    """A batch that the model was given and has not answered yet."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self._answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    @property
    def rows(self) -> list[Any]:
        """The first argument's rows, as a list."""
        return list(self.args[0])

    def reply(self, result: Any) -> None:
        self._answer.put((result, None))

    def echo(self) -> None:
        self.reply(self.args[0])

    def fail(self, error: BaseException) -> None:
        self._answer.put((None, error))

    def wait(self) -> Any:
        result, error = self._answer.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return result


class ScriptedModel(Runner):
    """A model whose every batch waits for the test to say what it returns.

    Its engine's clock stands still, so that no batch costs anything and nothing that is
    learned changes what runs together; ``clock=None`` is for tests of real deadlines.
    """

    def __init__(self, clock: FakeClock | None = _STANDS_STILL, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clock = clock
        self.batches: queue.SimpleQueue[ExpectedBatch] = queue.SimpleQueue()

    def _run_batch(self, *args: Any, **kwargs: Any) -> Any:
        batch = ExpectedBatch(args, kwargs)
        self.batches.put(batch)
        return batch.wait()

    def expect_batch(self) -> ExpectedBatch:
        """The next batch, once the model has it."""
        return self.batches.get(timeout=PATIENCE_S)

    def expect_idle(self) -> None:
        """No batch is waiting for an answer."""
        assert self.batches.empty()


class Caller:
    """One blocking call in a thread of its own."""

    def __init__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(call, args, kwargs), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._outcome.put((call(*args, **kwargs), None))
        except BaseException as error:
            self._outcome.put((None, error))

    def result(self) -> Any:
        result, error = self._outcome.get(timeout=PATIENCE_S)
        self._thread.join(PATIENCE_S)
        if error is not None:
            raise error
        return result


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Spins, without sleeping for a time, until another thread has made the condition true."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError(f"never came: {what}")
