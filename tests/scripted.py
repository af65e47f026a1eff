"""A model in a worker process that asks the test, over a socket, what to do with each batch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from fakes import PATIENCE_S

from batching import Runner


class Scripted(Runner):
    """Tells the test its process and rows, and obeys. `path` is the test's socket.

    Only batches whose first row is not "free" are asked about; the others are echoed.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def _run_batch(self, x: list[Any]) -> list[Any]:
        if x and x[0] == "free":
            return x
        with Client(self.path, "AF_UNIX") as test:
            test.send((os.getpid(), x))
            return obey(test.recv(), x)


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
        self._listener._listener._socket.settimeout(PATIENCE_S)  # type: ignore[attr-defined]

    def expect_batch(self) -> Visit:
        """The next batch, once a worker has it."""
        connection = self._listener.accept()
        assert connection.poll(PATIENCE_S)
        return Visit(connection)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def script(folder: Path) -> Iterator[Script]:
    own = Script(folder / "script")
    try:
        yield own
    finally:
        own.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
