"""Worker: a process that runs a runner's batches for a dispatcher.

What it is      gets a runner (pickled through a pipe from a supervisor, or imported by
                name), calls `_setup`, greets the dispatcher, and from then on answers
                each batch with one result or one error.
Guarantees      1. no error of the runner's code ends the process;
                2. it ends when its parent does: the kernel closes the pipe, whatever
                   happened to the parent;
                3. the runner, called from inside itself, raises instead of waiting for itself.
Why this shape  a thread of its own talks to the dispatcher, so that the runner's code has
                the main thread to itself.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import zmq

from .._native.rows import is_sole_reference
from ..errors import InvalidPayload, RunnerError
from ..signature import InvalidResult
from .buffers import Slicer, contiguous, join
from .connection import Connection
from .encoding import from_encoded, to_encoded
from .failures import model_failure
from .host import AsyncHost, ThreadHost, host_of
from .mailbox import Mailbox
from .native import native_plane
from .native_worker import NativeBatch, NativeWorkerLink, ResultWriter
from .recipe import model_of, signature_of
from .wire import Buffer, Code, Failure, Greeting, Plain, Record, Role, Rows, Type

__all__ = ["Model", "WorkerLink", "supervised", "work"]


class _Unreadable(Exception):
    """The arguments of a batch cannot be read: its callers' fault. An InvalidPayload that the
    model raises is the model's, like anything else that it raises."""


class Model:
    """A runner's code between two records: a BATCH in, a RESULT or an ERROR out. Never raises."""

    def __init__(self, runner: Any, *, allow_pickle: bool) -> None:
        self._runner = runner
        self._run_batch = model_of(runner)
        self._hook = runner._hook().__name__
        self._signature = signature_of(runner)
        self._allow_pickle = allow_pickle

    def run(self, batch: Rows) -> Record:
        try:
            args, kwargs = self._arguments(batch)
            return self._result(batch, self._run_batch(*args, **kwargs))
        except BaseException as error:
            return _failure(batch.id, error, self._hook)

    async def run_async(self, batch: Rows) -> Record:
        try:
            args, kwargs = self._arguments(batch)
            return self._result(batch, await self._run_batch(*args, **kwargs))
        except BaseException as error:
            return _failure(batch.id, error, self._hook)

    def _arguments(self, batch: Rows) -> tuple[tuple[Any, ...], dict[str, Any]]:
        buffers = batch.buffers
        missing = batch.padded_rows - batch.rows
        if missing and batch.rows:
            last = Slicer(buffers).cut(batch.rows - 1, 1)
            buffers = join([buffers, *[last] * missing])
        whole = [Buffer(b.row_bytes, [contiguous(b)], b.lengths) for b in buffers]
        return self._decoded(batch.key, to_encoded(whole), _model_rows(batch))

    def _decoded(self, key: bytes, buffers: Any, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return self._signature.decode(key, buffers, rows, allow_pickle=self._allow_pickle)
        except InvalidPayload as error:
            raise _Unreadable(str(error)) from error

    def _result(self, batch: Rows, result: Any) -> Rows:
        rows = _model_rows(batch)
        encoded = self._signature.encode_result(result, rows, allow_pickle=self._allow_pickle)
        buffers = from_encoded(encoded.buffers)
        if rows != batch.rows:
            buffers = Slicer(buffers).cut(0, batch.rows)
        # The model may write into its result again for the next batch, before this one was sent.
        owned = [Buffer(b.row_bytes, [bytes(chunk) for chunk in b.chunks], b.lengths) for b in buffers]
        return Rows(Type.RESULT, batch.id, batch.rows, encoded.key, owned)


class NativeModel(Model):
    """The same between a `NativeBatch` and a message's address, or an ERROR."""

    def _arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._decoded(batch.key, batch.buffers, _model_rows(batch))

    def __init__(self, runner: Any, *, allow_pickle: bool) -> None:
        super().__init__(runner, allow_pickle=allow_pickle)
        self._writer = ResultWriter()

    def run(self, batch: Any) -> Any:
        try:
            args, kwargs = self._arguments(batch)
            result = [self._run_batch(*args, **kwargs)]
            # Before the references to the result are counted: a model may return its argument.
            del args, kwargs
            return self._written(batch, result)
        except BaseException as error:
            return _failure(batch.id, error, self._hook)

    def _written(self, batch: Any, result: list[Any]) -> int:
        array = result[0]
        owned = type(array) is np.ndarray and array.base is None
        del array
        # What nobody else can reach is sent from where it is.
        owned = owned and is_sole_reference(result)
        encoded = self._signature.encode_result(
            result[0], _model_rows(batch), allow_pickle=self._allow_pickle
        )
        return self._writer.write(batch, encoded, owned)


def _model_rows(batch: Rows | NativeBatch) -> int:
    return batch.padded_rows if batch.rows else 0


def _failure(id_: int, error: BaseException, hook: str) -> Failure:
    if isinstance(error, InvalidResult):
        return Failure(id_, Code.BAD_RESULT, str(error))
    if isinstance(error, _Unreadable):
        return Failure(id_, Code.INVALID_PAYLOAD, str(error))
    return model_failure(error, hook, id_)


class WorkerLink:
    """A worker's side of the connection: its own thread, its own socket.

    Args:
        deliver: called with each BATCH, in the link's thread.
        leave: called once, when the dispatcher says STOP or is gone.
    """

    def __init__(
        self, endpoint: str, hello: Greeting, deliver: Callable[[Rows], None], leave: Callable[[], None]
    ) -> None:
        self.refusal = ""  # why the dispatcher did not take this worker
        self._endpoint = endpoint
        self._hello = hello
        self._deliver = deliver
        self._leave = leave
        self._mailbox = Mailbox()
        self._open = True
        self._outbox: list[Record] = []
        self._thread = threading.Thread(target=self._serve, name="batching-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, record: Record) -> None:
        """From any thread. The record's buffers must not change any more."""
        self._mailbox.urge(self._queue, record)

    def close(self) -> None:
        """Sends what is left, says goodbye."""
        self._mailbox.urge(self._stop)
        self._thread.join()

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            connection = Connection(context, self._endpoint)
            connection.send([self._hello])
            poller = zmq.Poller()
            connection.register(poller)
            poller.register(self._mailbox.fileno(), zmq.POLLIN)
            while self._open:
                poller.poll()
                self._turn(connection)
            connection.close()
            context.term()
        finally:
            self._mailbox.close()

    def _turn(self, connection: Connection) -> None:
        for handler, argument in self._mailbox.take():
            handler(argument)
        for records in connection.messages():
            for record in records:
                self._obey(record)
        for error in connection.broken:
            # Silence would leave the dispatcher waiting for these batches for ever.
            self._outbox += [Failure(id_, Code.MALFORMED, f"malformed batch: {error}") for id_ in error.ids]
        connection.broken.clear()
        if connection.lost:
            self.refusal = self.refusal or "the connection to the dispatcher was lost"
            self._finish()
        if self._outbox and not connection.lost:
            connection.send(self._outbox)
        self._outbox = []

    def _obey(self, record: Record) -> None:
        match record:
            case Rows(type=Type.BATCH):
                self._deliver(record)
            case Plain(type=Type.STOP | Type.BYE):
                self._finish()
            case Failure(id=0):
                self.refusal = record.message
                self._finish()
            case Plain(type=Type.PING):
                self._outbox.append(Plain(Type.PONG, record.id))
            case _:
                pass

    def _queue(self, record: Record) -> None:
        self._outbox.append(record)

    def _finish(self) -> None:
        leave, self._leave = self._leave, _nothing
        leave()

    def _stop(self, _: None) -> None:
        self._outbox.append(Plain(Type.BYE))
        self._open = False


def _nothing() -> None:
    pass


class _Inside:
    """The engine of a runner inside its own worker: waiting for itself would be forever."""

    max_latency_ms = None

    def submit(self, call: object) -> NoReturn:
        raise RunnerError("the runner was called from inside its own worker: call its model directly")

    def cancel(self, call: object) -> None:
        pass


def work(
    runner: Any,
    endpoint: str,
    *,
    token: str = "",
    allow_pickle: bool,
    credits: int,
    ready: Callable[[Callable[[], None]], None] | None = None,
) -> str:
    """Runs batches until the dispatcher says stop or is gone; returns why it ended early, or "".

    Args:
        ready: called after `_setup`, in the thread that runs the batches, with a function
            that has the worker leave after the batch at hand.

    Raises what `_setup` raises.
    """
    runner._bind(_Inside())
    model = Model(runner, allow_pickle=allow_pickle)
    host = host_of(runner, model_of(runner), credits)
    description = json.dumps({"token": token}).encode()
    hello = Greeting(Type.HELLO, Role.WORKER, runner.name, description, credits, os.getpid())
    # One that a signal may ask to leave waits where Python notices signals.
    if native_plane() and ready is None and credits == 1 and isinstance(host, ThreadHost):
        return _work_natively(NativeModel(runner, allow_pickle=allow_pickle), host, endpoint, hello)
    link = WorkerLink(endpoint, hello, host.deliver, host.leave)

    async def work_async(batch: Rows) -> None:
        link.send(await model.run_async(batch))

    def work_here(batch: Rows) -> None:
        link.send(model.run(batch))

    def begin() -> None:
        if ready is not None:
            ready(host.leave)
        link.start()

    host.run(begin, work_async if isinstance(host, AsyncHost) else work_here)
    link.close()
    return link.refusal


def _work_natively(model: NativeModel, host: ThreadHost, endpoint: str, hello: Greeting) -> str:
    """One thread waits, runs and sends: between two batches there is nothing to hand over."""
    link = NativeWorkerLink(endpoint, hello)

    def work_here(batch: Any) -> None:
        answer: Any = model.run(batch)
        del batch
        link.send(answer)

    host.take_from(link)
    host.run(link.start, work_here)
    link.close()
    return link.refusal


# ---- supervised --------------------------------------------------------------------


def supervised(boot: dict[str, Any], recipe: bytes, life_fd: int, report_fd: int) -> NoReturn:
    """The body of a worker process that a supervisor started. Never returns."""
    end_with(life_fd)
    try:
        runner = cloudpickle.loads(recipe)
        work(
            runner, boot["endpoint"], token=boot["token"],
            allow_pickle=boot["allow_pickle"], credits=boot["credits"],
        )  # fmt: skip
    except BaseException as error:
        _report(report_fd, error)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)
    raise SystemExit(0)


def _report(fd: int, error: BaseException) -> None:
    failure = model_failure(error, "_setup")
    texts = {"type_name": failure.type_name, "message": failure.message, "traceback": failure.traceback,
             "cause": base64.b64encode(failure.cause).decode()}  # fmt: skip
    data = memoryview(json.dumps(texts).encode())
    while data:
        data = data[os.write(fd, data) :]


def end_with(life_fd: int) -> None:
    """Has this process end when the other end of the pipe is closed."""
    if hasattr(fcntl, "F_SETSIG"):
        # The kernel itself kills: no thread has to be scheduled and no GIL taken for it,
        # which a model that never lets go of the GIL would prevent.
        fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life_fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    # Also covers a parent that ended before, and systems without the above.
    threading.Thread(target=_wait_for_end, args=(life_fd,), name="batching-life", daemon=True).start()


def _wait_for_end(life_fd: int) -> NoReturn:
    while True:
        try:
            if not os.read(life_fd, 1):
                os._exit(0)
        except InterruptedError:
            continue
