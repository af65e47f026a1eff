"""NativeWorkerLink: `WorkerLink` without a thread of its own.

What it is      those who run the batches wait for them here: one thread at the socket, the others
                for their turn; or a loop, which hears of the socket like of any other.
Guarantees      those of `WorkerLink`; and the rows of a batch are in one piece of memory of their
                own for each buffer, gathered without the GIL where that is much.
Why this shape  between two batches nothing is handed from thread to thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from .._native.rows import BufferPool
from ..payloads import Fixed, Var
from . import native
from .connection import Connection
from .failures import model_failure
from .model import Batch
from .standing import Next, Standing
from .wire import Code, Failure, Greeting, Plain, Type

__all__ = ["NativeWorkerLink"]

_NEVER = -1


class NativeWorkerLink:
    """The dispatcher, as a worker sees it. Arguments and methods: as `WorkerLink`; `pool`: where the
    memory of large batches comes from."""

    def __init__(self, endpoint: str, hello: Greeting, pool: BufferPool, *, redials: bool = False) -> None:
        self._endpoint = endpoint
        self._hello = hello
        self._standing = Standing(redials=redials)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._turn = threading.Lock()  # of waiting at the socket, and of what came
        self._socket: native.link.LinkSocket | None = None
        self._batches: deque[Batch] = deque()
        self._pool = pool
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Callable[[Batch | None], None] = _nowhere
        self._watched: list[int] = []

    @property
    def refusal(self) -> str:
        return self._standing.refusal

    def start(self) -> None:
        self._dial()

    def get(self) -> Batch | None:
        with self._turn:
            while not self._batches and not self._standing.over:
                self._wait()
            return self._batches.popleft() if self._batches else None

    def attach(self, deliver: Callable[[Batch | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver

    def send(self, batch: Batch, answer: Any) -> None:
        # To the connection that it came on: one that ended drops it.
        batch.origin.send(answer if isinstance(answer, int) else _message(answer))

    def leave(self) -> None:
        self._standing.asked.set()
        socket = self._socket
        if socket is not None:
            socket.send(_message(Plain(Type.STOP)))
            socket.interrupt()
        elif self._loop is not None:
            # Whichever socket there is by then: one that was just dialled is to hear a goodbye.
            self._loop.call_soon_threadsafe(lambda: self._judge(self._socket))

    def close(self) -> None:
        self._part(Plain(Type.BYE))
        self._context.term()

    # ---- one thread at a time, or the loop ---------------------------------------------

    def _dial(self) -> None:
        try:
            socket = native.socket_of(Connection(self._context, self._endpoint, patient=True))
        except (OSError, zmq.ZMQError):
            self._judge(None)  # descriptors are short; for how long, nobody knows
            if self._standing.over:
                raise
            return
        socket.send(_message(self._hello))
        self._socket = socket
        if self._standing.asked.is_set():  # while it was not there to be told
            socket.interrupt()
        if self._loop is not None:
            self._watched = socket.descriptors()
            for fd in self._watched:
                self._loop.add_reader(fd, self._take_all, socket)

    def _part(self, last: Plain | None = None) -> None:
        socket, self._socket = self._socket, None
        if socket is None:
            return
        for fd in self._watched:
            assert self._loop is not None
            self._loop.remove_reader(fd)
        self._watched = []
        if last is not None:
            socket.send(_message(last))
        socket.close()

    def _wait(self) -> None:
        socket = self._socket
        if socket is not None:
            self._take(socket, _NEVER)
        elif self._standing.asked.wait(self._standing.pause_s()):
            self._judge(None)
        else:
            self._dial()

    def _take_all(self, socket: native.link.LinkSocket) -> None:
        # To the last: libzmq tells of what comes only to those who have seen that there was nothing.
        while self._take(socket, 0) and self._socket is socket:
            pass

    def _take(self, socket: native.link.LinkSocket, until_ns: int) -> bool:
        """Reads what is there, or comes until then, and does what is to be done about it. Whether
        there was a message."""
        some = self._read(socket, until_ns)
        if self._standing.refused and not socket.lost:
            while self._read(socket, 0):  # to see whether it came from a dispatcher that we never greeted
                pass
        self._judge(socket)
        return some

    def _read(self, socket: native.link.LinkSocket, until_ns: int) -> bool:
        messages = socket.receive(until_ns, 1)  # looking for more costs, and mostly there is none
        for message in messages:
            for record in native.batches.read_batches(message, Fixed, Var, self._pool):
                self._obey(socket, *record)
        return bool(messages)

    def _judge(self, socket: native.link.LinkSocket | None) -> None:
        was_over = self._standing.over
        lost = socket is None or socket.lost
        step = self._standing.next(lost=lost)
        if lost or (step is Next.LEAVE and not self._standing.dismissed):
            self._batches.clear()  # they run elsewhere by now
        if lost or step is Next.DIAL:
            self._part()
        if step is Next.DIAL and self._loop is not None:
            self._loop.call_later(self._standing.pause_s(), self._dial_again)
        if step is Next.LEAVE and not was_over and self._loop is not None:
            self._deliver(None)

    def _dial_again(self) -> None:
        if self._socket is None and not self._standing.over:
            self._dial()

    def _obey(self, socket: native.link.LinkSocket, kind: int, id_: int, *content: Any) -> None:
        match kind:
            case Type.BATCH:
                batch = Batch(socket, id_, *content)
                if self._loop is None:
                    self._batches.append(batch)
                else:
                    self._deliver(batch)
            case Type.PING:
                socket.send(_message(Plain(Type.PONG, id_)))
            case -1:
                error = MemoryError("no memory for the rows of a batch")
                socket.send(_message(model_failure(error, "the worker", id_)))
            case 0:
                # Silence would leave the dispatcher waiting for these batches for ever.
                socket.send(_message(Failure(id_, Code.MALFORMED, "malformed batch")))
            case _:
                self._standing.hear(kind, *content)


def _message(record: Any) -> int:
    return native.link.new_message(native.packed(record))


def _nowhere(_: Batch | None) -> None:
    pass
