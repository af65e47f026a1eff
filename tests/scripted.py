"""A model in a worker process that asks the test, over a socket, what to do with each batch."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from fakes import PATIENCE_S

from batching import BatchOptions, Runner, runner_service


class Scripted(Runner):
    """Tells the test its process and rows, and obeys. `path` is the test's socket.

    Batches of nothing but "free" are echoed without a question.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def _run_batch(self, x: list[Any]) -> list[Any]:
        if isinstance(x, list) and x.count("free") == len(x):
            return x
        with Client(self.path, "AF_UNIX") as test:
            test.send((os.getpid(), x))
            return obey(test.recv(), x)


class AsyncScripted(Scripted):
    """The same on a loop."""

    async def _run_batch(self, x: list[Any]) -> list[Any]:
        return await asyncio.to_thread(Scripted._run_batch, self, x)


def obey(order: tuple[str, Any], x: list[Any]) -> list[Any]:
    match order:
        case ("echo", _):
            return x
        case ("raise", text):
            raise ValueError(text)
        case ("exit", code):
            os._exit(code)
        case ("kill", number):
            os.kill(os.getpid(), number)
        case ("hang", _):
            threading.Event().wait()
    raise AssertionError(order)


class Visit:
    """A batch in a worker that waits for an order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pid, self.rows = connection.recv()

    def order(self, verb: str, argument: Any = None) -> None:
        self._connection.send((verb, argument))
        self._connection.close()

    def echo(self) -> None:
        self.order("echo")

    def kill(self) -> None:
        """SIGKILL, from outside, in the middle of the batch."""
        os.kill(self.pid, signal.SIGKILL)
        self._connection.close()


class Script:
    """The test's end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = Listener(self.path, "AF_UNIX", backlog=64)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._listener._listener._socket.settimeout(PATIENCE_S)  # type: ignore[attr-defined]

    def expect_batch(self) -> Visit:
        """The next batch, once a worker has it."""
        connection = self._listener.accept()
        if self._stopping:
            raise OSError("the test is over")
        assert connection.poll(PATIENCE_S)
        return Visit(connection)

    def answer(self, decide: Callable[[list[Any]], tuple[str, Any]]) -> list[list[Any]]:
        """From now on every batch gets the order that `decide(rows)` gives. The rows seen."""
        seen: list[list[Any]] = []

        def loop() -> None:
            with suppress(OSError):  # closed
                while True:
                    visit = self.expect_batch()
                    seen.append(visit.rows)
                    visit.order(*decide(visit.rows))

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()
        return seen

    def close(self) -> None:
        if self._thread is not None:  # a blocked accept is not woken by a close
            self._stopping = True
            with suppress(OSError):
                Client(self.path, "AF_UNIX").close()
            self._thread.join(PATIENCE_S)
        self._listener.close()


@contextmanager
def serve(test: Script, workers: int = 1, **options):
    """A service whose stop is bounded: a failed test leaves calls that nobody answers."""
    service = runner_service(Scripted(test.path, options=BatchOptions(**options)), workers=workers).start()
    try:
        yield service
        service.stop()
    finally:
        service.stop(timeout_s=0)


@contextmanager
def script(folder: Path) -> Iterator[Script]:
    own = Script(folder / "script")
    try:
        yield own
    finally:
        own.close()


class OneWay:
    """Can be pickled; to unpickle it raises."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("cannot come back")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
