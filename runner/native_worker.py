"""NativeWorkerLink: `WorkerLink`, for threads that wait for the batches that they run."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import zmq

from .._native.rows import BufferPool
from ..payloads import Encoded, Fixed, Var
from ..signature import InvalidResult
from . import native
from .connection import Connection
from .wire import Code, Failure, Greeting, Plain, Record, Type

__all__ = ["NativeBatch", "NativeWorkerLink", "ResultWriter"]

_NEVER = -1


class NativeBatch(NamedTuple):
    """A batch to run: `buffers` are the signature's, whole, with `padded_rows` rows."""

    id: int
    rows: int
    padded_rows: int
    key: bytes
    buffers: list[Fixed | Var]


class NativeWorkerLink:
    """`WorkerLink` without a thread: the thread that runs the batches waits for them here.

    A batch's rows are in one piece of memory of their own for each buffer when `get` returns.
    """

    def __init__(self, endpoint: str, hello: Greeting) -> None:
        self.refusal = ""  # why the dispatcher did not take this worker, or lost it
        self._endpoint = endpoint
        self._hello = hello
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: native.link.LinkSocket | None = None
        self._batches: deque[NativeBatch] = deque()
        self._leaving = False
        self._pool = BufferPool(keep=4)

    def start(self) -> None:
        self._socket = native.link.LinkSocket(*Connection(self._context, self._endpoint).sockets)
        self.send(self._hello)

    def get(self) -> NativeBatch | None:
        """The next batch; None once the dispatcher said stop, or is gone."""
        assert self._socket is not None
        while not self._batches and not self._leaving:
            for message in self._socket.receive(_NEVER):
                for record in native.batches.read_batches(message, Fixed, Var, self._pool):
                    self._obey(*record)
            if self._socket.lost:
                self.refusal = self.refusal or "the connection to the dispatcher was lost"
                self._leaving = True
        return self._batches.popleft() if self._batches else None

    def send(self, record: Record | int) -> None:
        """A record, or the address of a message."""
        assert self._socket is not None
        self._socket.send(
            record if isinstance(record, int) else native.link.new_message(native.packed(record))
        )

    def close(self) -> None:
        if self._socket is not None:
            self.send(Plain(Type.BYE))
            self._socket.close()
        self._context.term()

    def _obey(self, kind: int, id_: int, *content: Any) -> None:
        match kind:
            case Type.BATCH:
                self._batches.append(NativeBatch(id_, *content))
            case Type.STOP | Type.BYE:
                self._leaving = True
            case Type.ERROR if id_ == 0:
                self.refusal = content[0]
                self._leaving = True
            case Type.PING:
                self.send(Plain(Type.PONG, id_))
            case 0:
                # Silence would leave the dispatcher waiting for these batches for ever.
                self.send(Failure(id_, Code.MALFORMED, "malformed batch"))


class ResultWriter:
    """Makes RESULT messages, ready for `send`."""

    def __init__(self) -> None:
        self._pool = BufferPool(keep=4)

    def write(self, batch: NativeBatch, encoded: Encoded, owned: bool) -> int:
        """Of the batch's rows. The buffers are copied unless they are owned. Raises InvalidResult."""
        try:
            return native.batches.new_result(
                batch.id, batch.rows, encoded.key, encoded.buffers, Var, self._pool, owned
            )
        except ValueError as error:
            raise InvalidResult(f"_run_batch returned what cannot be sent: {error}") from None
