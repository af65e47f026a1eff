"""Grouping: calls of clients without the runner's class, on their way to the key of their group.

What it is      a thread of its own for the runner's `group_by`, between two turns of the plain
                dispatcher: it takes calls from it and gives them back.
Guarantees      1. the dispatcher never waits for the hook, however slow;
                2. calls come back in the order in which they were taken, each once;
                3. no more rows wait than the queue may hold.
Not promised    that a call comes back: a hook may hang. Its deadline is its caller's to watch.
Threads         `run` is the body of the thread; all other methods are for the dispatcher's.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from .mailbox import Mailbox
from .peers import Client
from .serving import Hooks, later, rekeyed
from .wire import Code, Failure, Rows

__all__ = ["Grouping"]

_LOST = "the call could not be grouped: out of memory"


class Grouping:
    """`back` gets each call of a client that is still there, or why it has no group, and whether it was
    cancelled meanwhile; in the dispatcher's thread."""

    def __init__(
        self, name: str, hooks: Hooks, mailbox: Mailbox, back: Callable[[Client, Rows | Failure, bool], None]
    ) -> None:
        self._hooks = hooks
        self._mailbox = mailbox
        self._back = back
        self._rows = 0  # that wait
        self._calls: queue.SimpleQueue[tuple[Client, Rows, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"batching-{name}-groups", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """What still waits does not come back."""
        self._calls.put(None)

    def join(self) -> None:
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def take(self, client: Client, call: Rows, max_queue_rows: int) -> Failure | None:
        """Why the call is refused; None if it will come back."""
        rows = _rows(call)
        if self._rows > 0 and self._rows + rows > max_queue_rows:
            text = (
                f"{self._rows} rows wait to be grouped, and {rows} more would exceed max_queue_rows, "
                f"{max_queue_rows}"
            )
            return Failure(call.id, Code.OVERLOADED, text)
        self._rows += rows
        client.grouping[call.id] = False
        self._calls.put((client, call, time.monotonic_ns()))
        return None

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            client, call, since_ns = item
            grouped: Rows | Failure | None = None
            with suppress(BaseException):  # no memory: the call ends, and the thread does not
                grouped = later(rekeyed(self._hooks, call), since_ns)
            self._mailbox.urge(self._returned, (client, call, grouped))

    def _returned(self, item: tuple[Client, Rows, Rows | Failure | None]) -> None:
        client, call, grouped = item
        self._rows -= _rows(call)
        cancelled = client.grouping.pop(call.id, None)
        if cancelled is not None:
            self._back(client, grouped or Failure(call.id, Code.OVERLOADED, _LOST), cancelled)


def _rows(call: Rows) -> int:
    """As which it counts."""
    return max(call.rows, 1)
