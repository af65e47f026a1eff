"""WorkerLink: a worker's side of the connection over the plain data plane, with a thread of its own.

Guarantees      1. every batch that came is handed out once, and its answer goes to the connection
                   that it came on, or nowhere;
                2. asked to leave, it takes no batch any more, hands out those that are on
                   their way, and only then has nothing more to give.
Why this shape  the runner's code has the other threads, or the loop, to itself.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from .connection import Connection
from .mailbox import Mailbox
from .model import Batch
from .standing import Next, Standing
from .wire import Code, Failure, Greeting, Plain, Record, Rows, Type

__all__ = ["WorkerLink"]


class WorkerLink:
    """The dispatcher, as a worker sees it.

    Args:
        redials: whether a lost connection is dialled anew, or the end.

    Batches are taken with `get`, by any number of threads, or come to a loop with `attach`.
    """

    def __init__(self, endpoint: str, hello: Greeting, *, redials: bool = False) -> None:
        self._endpoint = endpoint
        self._hello = hello
        self._standing = Standing(redials=redials)
        self._mailbox = Mailbox()
        self._connection: Connection | None = None
        self._poller = zmq.Poller()
        self._poller.register(self._mailbox.fileno(), zmq.POLLIN)
        self._dial_s: float | None = 0.0  # when, while there is no connection and there is to be one
        self._open = True
        self._outbox: list[Record] = []
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._put: Callable[[Batch | None], None] = self._inbox.put
        self._thread = threading.Thread(target=self._serve, name="batching-link", daemon=True)

    @property
    def refusal(self) -> str:
        """Why the dispatcher did not take this worker, or lost it; "" if the end was wanted."""
        return self._standing.refusal

    def start(self) -> None:
        self._thread.start()

    def get(self) -> Batch | None:
        """The next batch; None when there is none any more."""
        batch = self._inbox.get()
        if batch is None:
            self._inbox.put(None)  # for the other threads
        return batch

    def attach(self, deliver: Callable[[Batch | None], None]) -> None:
        """Before `start`, instead of `get`: each batch, and None at last, comes to the running loop."""
        loop = asyncio.get_running_loop()

        def put(batch: Batch | None) -> None:
            loop.call_soon_threadsafe(deliver, batch)

        self._put = put

    def send(self, batch: Batch, answer: Any) -> None:
        """From any thread. The answer's buffers must not change any more."""
        self._mailbox.urge(self._queue, (batch.origin, answer))

    def leave(self) -> None:
        """From any thread: no batch any more than those that are on their way."""
        self._standing.asked.set()
        self._mailbox.urge(self._ask)

    def close(self) -> None:
        """When every batch has its answer: sends what is left, says goodbye."""
        self._mailbox.urge(self._stop)
        self._thread.join()

    # ---- the thread ----------------------------------------------------------------

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            while self._open:
                if self._dial_s is not None and time.monotonic() >= self._dial_s:
                    self._dial(context)
                self._poller.poll(self._timeout_ms())
                self._turn()
            self._part()
            context.term()
        except BaseException as error:  # our bug: the worker must not wait for batches for ever
            self._standing.refusal = f"the worker's link failed: {type(error).__name__}: {error}"
            self._put(None)
            raise
        finally:
            self._mailbox.close()

    def _dial(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._dial_s = None
        try:
            connection = Connection(context, self._endpoint, patient=True)
        except zmq.ZMQError:
            self._judge(lost=True)  # descriptors are short; for how long, nobody knows
            if self._standing.over:
                raise
            return
        self._connection = connection
        connection.register(self._poller)
        connection.send([self._hello])

    def _timeout_ms(self) -> int | None:
        return None if self._dial_s is None else max(0, int((self._dial_s - time.monotonic()) * 1000) + 1)

    def _turn(self) -> None:
        for handler, argument in self._mailbox.take():
            handler(argument)
        connection = self._connection
        if connection is None:
            if self._standing.asked.is_set():
                self._judge(lost=True)
            return
        for records in connection.messages():
            for record in records:
                self._obey(connection, record)
        for error in connection.broken:
            # Silence would leave the dispatcher waiting for these batches for ever.
            self._outbox += [Failure(id_, Code.MALFORMED, f"malformed batch: {error}") for id_ in error.ids]
        connection.broken.clear()
        if self._outbox and not connection.lost:
            connection.send(self._outbox)
        self._outbox = []
        self._judge(lost=connection.lost)

    def _judge(self, *, lost: bool) -> None:
        was_over = self._standing.over
        step = self._standing.next(lost=lost)
        if lost or step is Next.DIAL:
            self._part()
        if step is Next.DIAL:
            self._dial_s = time.monotonic() + self._standing.pause_s()
        elif step is Next.LEAVE and not was_over:
            self._dial_s = None
            self._put(None)

    def _part(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.unregister(self._poller)
            connection.close()

    def _obey(self, connection: Connection, record: Record) -> None:
        match record:
            case Rows(type=Type.BATCH):
                self._put(
                    Batch(connection, record.id, record.rows, record.padded_rows, record.key, record.buffers)
                )
            case Failure(id=0):
                self._standing.hear(Type.ERROR, record.message)
            case Plain(type=Type.PING):
                self._outbox.append(Plain(Type.PONG, record.id))
            case Plain() | Greeting():
                self._standing.hear(record.type)
            case _:
                pass

    def _queue(self, sent: tuple[Connection, Record]) -> None:
        connection, record = sent
        # Another connection's dispatcher never gave that batch out, or gave it to another worker since.
        if connection is self._connection:
            self._outbox.append(record)

    def _ask(self, _: None) -> None:
        self._outbox.append(Plain(Type.STOP))

    def _stop(self, _: None) -> None:
        self._outbox.append(Plain(Type.BYE))
        self._open = False
