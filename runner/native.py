"""The native data plane behind the classes of the plain one.

What it is      `NativeDispatcher`, `NativeLink` and `NativeWorkerLink` do what `Dispatcher`, `Link`
                and `WorkerLink` do, with everything that happens once per request in C
                (batching._native.plane and .link). `native_plane()` says whether they can be used.
Guarantees      those of the plain classes, which remain the fallback where pyzmq comes without
                libzmq's symbols; the same tests run over both.
Why this shape  Python makes and configures the sockets, and hears of workers, handshakes and ends,
                which are few. `BATCHING_DATA_PLANE=plain` or `native` chooses by hand.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import zmq

from .._native.rows import BufferPool
from .._native.scheduler import Scheduler
from ..errors import BatchingError, RunnerClosed, ServiceUnreachable
from ..options import BatchOptions
from ..payloads import Encoded, Fixed, Var
from ..signature import InvalidResult
from .connection import Connection
from .dispatcher import Counters, Hooks
from .endpoints import distrust
from .failures import error_of
from .recipe import CallSignature, same_arguments
from .router import Router
from .wire import VERSION, Code, Failure, Greeting, Packet, Plain, Record, Role, Rows, Type

try:
    from .._native import link as _link
    from .._native import plane as _plane
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

__all__ = [
    "NativeBatch",
    "NativeDispatcher",
    "NativeLink",
    "NativeWorkerLink",
    "ResultWriter",
    "native_plane",
]

_NS_PER_MS = 1_000_000
_NEVER = -1
# The low half of a request's id that is no call's.
_QUESTION = 0xFFFFFFFF


def native_plane() -> bool:
    """Whether the native data plane is to be used in this process.

    Raises:
        ImportError: it was asked for by BATCHING_DATA_PLANE=native and cannot be had.
        ValueError: BATCHING_DATA_PLANE is something else than native, plain or empty.
    """
    wanted = os.environ.get("BATCHING_DATA_PLANE", "")
    if wanted not in ("", "native", "plain"):
        raise ValueError(f"BATCHING_DATA_PLANE must be native or plain, got {wanted!r}")
    if wanted == "native" and _missing is not None:
        raise _missing
    return wanted != "plain" and _missing is None


def _frames(record: Record) -> list[Any]:
    packet = Packet()
    packet.add(record)
    return packet.frames()


def _error_maker(allow_pickle: bool) -> Callable[..., BatchingError]:
    def make(
        code: int, exit_code: int, number: int, message: str, type_name: str, traceback: str, cause: bytes
    ) -> BatchingError:
        failure = Failure(0, code, message, type_name, traceback, cause, exit_code, number)
        return error_of(failure, allow_pickle=allow_pickle)

    return make


# ---- the dispatcher -----------------------------------------------------------------


class NativeDispatcher:
    """`Dispatcher`, on a thread that needs no GIL. A second thread hears of what Python has to know.

    Args and methods: as `Dispatcher`; calls of this process come through `engine`.
    """

    def __init__(
        self,
        name: str,
        description: bytes,
        scheduler: Scheduler,
        hooks: Hooks,
        *,
        max_queue_rows: int,
        run_timeout_ms: float | None = None,
    ) -> None:
        self.endpoint = ""
        self._hooks = hooks
        self._router = Router()
        self._plane = _plane.Plane(
            name, description, *self._router.sockets, scheduler,
            max_queue_rows=max_queue_rows, run_timeout_ns=_timeout_ns(run_timeout_ms),
        )  # fmt: skip
        self._pipe: _link.Pipe | None = None
        self._drained = threading.Event()
        self._thread = threading.Thread(target=self._plane.run, name=f"batching-{name}", daemon=True)
        self._listener = threading.Thread(target=self._listen, name=f"batching-{name}-events", daemon=True)

    def bind(self, endpoint: str) -> str:
        self.endpoint = self._router.bind(endpoint)
        return self.endpoint

    def start(self) -> None:
        self._thread.start()
        self._listener.start()

    def discard(self) -> None:
        """Instead of `start`."""
        self._plane.close()
        self._router.close()

    def engine(
        self, signature: CallSignature, options: BatchOptions, *, allow_pickle: bool
    ) -> _link.PipeEngine:
        """What calls of this process go to: straight into the queue."""
        self._pipe = _link.Pipe(self._submit, _refuse, _error_maker(allow_pickle))
        self._pipe.open()
        return _link.PipeEngine(
            self._pipe, signature, options.max_latency_ms, allow_pickle=allow_pickle, fixed=Fixed, var=Var
        )

    def worker_died(self, token: str, failure: Failure) -> None:
        self._plane.worker_died(token, _frames(failure))

    def fail_calls(self, failure: Failure | None) -> None:
        self._plane.fail_calls(None if failure is None else _frames(failure))

    def set_options(self, changes: dict[str, Any], max_queue_rows: int, run_timeout_ms: float | None) -> None:
        self._plane.query(lambda scheduler, _: scheduler.set_options(**changes))
        self._plane.set_limits(max_queue_rows, _timeout_ns(run_timeout_ms))

    def describe(self, description: bytes) -> None:
        self._plane.describe(description)

    def statistics(self) -> dict[str, Any]:
        return self._plane.query(_numbers)

    def drain(self, timeout_s: float | None = None) -> bool:
        self._plane.drain()
        return self._drained.wait(timeout_s)

    def dismiss_workers(self) -> None:
        self._plane.dismiss_workers()

    def end(self, failure: Failure) -> None:
        if not self._thread.is_alive():
            return
        self._plane.end(_frames(failure))
        self._thread.join()
        if threading.current_thread() is not self._listener:
            self._listener.join()
        if self._pipe is not None:
            self._pipe.fail_all(lambda: error_of(failure, allow_pickle=False))
        self._plane.close()
        self._router.close()

    @property
    def counters(self) -> Counters:
        """What went wrong on the wire, ever."""
        counters = Counters()
        counters.dropped, counters.cut_off = self._plane.query(lambda _, numbers: numbers[:2])
        return counters

    def inspect(self) -> tuple[int, list[int]]:
        return self._plane.inspect()

    def _submit(self, message: int) -> None:
        if not self._plane.submit(message) and self._pipe is not None:
            self._pipe.fail_all(_closed)

    def _listen(self) -> None:
        while events := self._plane.events():
            for event in events:
                # An error of a hook is ours; it must not end the listening.
                with suppress(Exception):
                    self._obey(*event)

    def _obey(self, kind: str, text: str, why: Any, number: int) -> None:
        match kind:
            case "local":
                try:
                    if self._pipe is not None:
                        self._pipe.receive(number)
                finally:
                    _link.drop(number)
            case "ready":
                self._hooks.worker_ready(text)
            case "kill":
                self._hooks.kill_worker(text, why)
            case "ask":
                metadata = json.dumps(self.statistics()).encode()
                self._plane.reply(number, _frames(Rows(Type.ANSWER, why, 0, b"", [], metadata=metadata)))
            case "drained":
                self._drained.set()


def _numbers(scheduler: Scheduler, counters: tuple[int, int, int, int, int]) -> dict[str, Any]:
    numbers = scheduler.statistics()
    numbers["workers_ready"] = counters[2]
    numbers["groups"] = counters[4]
    return numbers


def _timeout_ns(ms: float | None) -> int:
    return _NEVER if ms is None else int(ms * _NS_PER_MS)


def _refuse() -> None:
    raise _closed()


def _closed() -> RunnerClosed:
    return RunnerClosed("the service was stopped: no new calls are taken")


# ---- a client -------------------------------------------------------------------------


class NativeLink:
    """`Link`, whose callers write and read their records without the GIL's other threads.

    Its thread connects, waits for messages, and takes the GIL once for all that are there.
    """

    def __init__(self, endpoint: str, name: str, timeout_s: float, *, allow_pickle: bool) -> None:
        self.endpoint = endpoint
        self.name = name
        self.timeout_s = timeout_s
        self.users = 0  # the registry's
        self._allow_pickle = allow_pickle
        self._engines: weakref.WeakSet[_link.PipeEngine] = weakref.WeakSet()
        self._kept: list[Any] = []  # of a parent process: not to be touched, not even freed
        self._ended = False
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: _link.LinkSocket | None = None
        self._together = False
        self._description: bytes | None = None
        self._greetings: list[Future[bytes]] = []
        self._questions: dict[int, Future[dict[str, Any]]] = {}
        self._next_question = 1
        self._pipe = _link.Pipe(self._send, self._want, _error_maker(self._allow_pickle))
        for engine in self._engines:
            engine.move(self._pipe)

    # ---- any thread ----------------------------------------------------------------

    def engine(self, signature: CallSignature, options: BatchOptions) -> _link.PipeEngine:
        engine = _link.PipeEngine(
            self._pipe, signature, options.max_latency_ms,
            allow_pickle=self._allow_pickle, fixed=Fixed, var=Var, link=self,
        )  # fmt: skip
        self._engines.add(engine)
        return engine

    def greet(self) -> bytes:
        """The service's description; connects if need be. Raises ServiceUnreachable."""
        greeting: Future[bytes] = Future()
        with self._lock:
            if self._together and self._description is not None:
                return self._description
            self._greetings.append(greeting)
        self._want()
        return greeting.result()

    def statistics(self) -> dict[str, Any]:
        """The dispatcher's numbers. Raises ServiceUnreachable."""
        self.greet()
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if not self._together:
                raise ServiceUnreachable(f"the connection to {self.endpoint} was lost")
            self._next_question += 1
            self._questions[self._next_question << 32 | _QUESTION] = answer
            self._pipe.ask(self._next_question)
        return answer.result()

    def close(self) -> None:
        with self._lock:
            self._ended = True
            thread, self._thread = self._thread, None
            if self._socket is not None:
                self._socket.interrupt()
        self._wanted.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget_parent(self) -> None:
        """In a fork's child: starts over with a socket and thread of its own."""
        self._kept.append(self.__dict__.copy())
        self._begin()

    def _want(self) -> None:
        """There is something to send, or a greeting to wait for."""
        with self._lock:
            if self._ended:
                raise RunnerClosed(f"the connection to {self.name!r} was closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name=f"batching-client-{self.name}", daemon=True
                )
                self._thread.start()
        self._wanted.set()

    def _send(self, message: int) -> None:
        socket = self._socket
        if socket is None:
            _link.drop(message)
        else:
            socket.send(message)

    # ---- the thread ------------------------------------------------------------------

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        why = ""
        try:
            while not self._ended:
                self._wanted.wait()
                self._wanted.clear()
                if not self._ended and (self._greetings or len(self._pipe)):
                    self._connect(context)
        except BaseException as error:  # our bug: no caller may hang for it
            why = f"the client failed: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                self._ended = True
            text = why or f"the connection to {self.name!r} was closed"
            self._part(lambda: ServiceUnreachable(text) if why else RunnerClosed(text), text)
            context.term()

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """One connection, from its handshake to its end."""
        try:
            connection = Connection(context, self.endpoint)
        except zmq.ZMQError as error:
            self._unreachable(f"cannot connect to {self.endpoint}: {error}")
            return
        socket = _link.LinkSocket(*connection.sockets)
        with self._lock:
            self._socket = socket
        try:
            hello = Greeting(Type.HELLO, Role.CLIENT, self.name, pid=os.getpid())
            socket.send(_link.new_message(_frames(hello)))
            until_ns = time.monotonic_ns() + int(self.timeout_s * 1e9)
            text = ""
            while not text and not self._ended:
                text = self._turn(socket, until_ns)
            if not text and self._together:
                self._pipe.flush()
                self._pipe.write_plain(Type.BYE, 0)
        finally:
            with self._lock:
                self._together = False
                self._socket = None
            socket.close()
        if text:
            self._unreachable(text)

    def _turn(self, socket: _link.LinkSocket, until_ns: int) -> str:
        """Takes what came; returns why the connection is over, or "" while it is not."""
        text = ""
        for message in socket.receive(_NEVER if self._together else until_ns):
            try:
                others = self._pipe.receive(message)
            finally:
                _link.drop(message)
            for other in others:
                text = text or self._obey(*other)
        if socket.lost:
            text = text or f"the connection to {self.endpoint} was lost"
        if not self._together and time.monotonic_ns() >= until_ns:
            text = text or f"no dispatcher answered at {self.endpoint} within {self.timeout_s:g} s"
        return text

    def _obey(self, kind: int, id_: int, content: Any) -> str:
        match kind:
            case Type.WELCOME:
                return self._welcome(id_ >> 16, id_ & 0xFFFF, content)
            case Type.ERROR if id_ == 0:
                return str(content)
            case Type.ERROR | Type.ANSWER:
                self._answer_question(kind, id_, content)
            case Type.BYE:
                return f"the service at {self.endpoint} was stopped"
            case Type.PING:
                self._pipe.write_plain(Type.PONG, id_)
        return ""

    def _welcome(self, lowest: int, highest: int, description: bytes) -> str:
        if not lowest <= VERSION <= highest:
            return f"the service speaks versions {lowest} to {highest}, not {VERSION}"
        # Now, as its socket was not yet there when this link was made.
        if problem := distrust(self.endpoint):
            return problem
        if self._description is not None and not same_arguments(self._description, description):
            # The calls at hand were made for another signature.
            self._description = description
            return f"the runner {self.name!r} was replaced by one with other arguments: connect again"
        with self._lock:
            self._description = description
            self._together = True
            greetings, self._greetings = self._greetings, []
        self._pipe.open()
        for greeting in greetings:
            greeting.set_result(description)
        return ""

    def _answer_question(self, kind: int, id_: int, content: Any) -> None:
        answer = self._questions.pop(id_, None)
        if answer is None:
            return
        try:
            if kind == Type.ERROR:
                raise ServiceUnreachable(content)
            answer.set_result(json.loads(content))
        except ValueError as error:
            answer.set_exception(ServiceUnreachable(f"no statistics came back: {error}"))
        except ServiceUnreachable as error:
            answer.set_exception(error)

    def _unreachable(self, text: str) -> None:
        self._part(lambda: ServiceUnreachable(text), text)

    def _part(self, make_error: Callable[[], BatchingError], text: str) -> None:
        """The connection is over: everything that needed it fails."""
        self._pipe.fail_all(make_error)
        with self._lock:
            greetings, self._greetings = self._greetings, []
            questions, self._questions = self._questions, {}
        futures: list[Future[Any]] = [*greetings, *questions.values()]
        for future in futures:
            future.set_exception(ServiceUnreachable(text))


_alive: weakref.WeakSet[NativeLink] = weakref.WeakSet()


def _after_fork() -> None:
    for link in list(_alive):
        link.forget_parent()


os.register_at_fork(after_in_child=_after_fork)


# ---- a worker --------------------------------------------------------------------------


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
        self._socket: _link.LinkSocket | None = None
        self._batches: deque[NativeBatch] = deque()
        self._leaving = False
        self._pool = BufferPool(keep=4)

    def start(self) -> None:
        self._socket = _link.LinkSocket(*Connection(self._context, self._endpoint).sockets)
        self.send(self._hello)

    def get(self) -> NativeBatch | None:
        """The next batch; None once the dispatcher said stop, or is gone."""
        assert self._socket is not None
        while not self._batches and not self._leaving:
            for message in self._socket.receive(_NEVER):
                for record in _link.read_batches(message, Fixed, Var, self._pool):
                    self._obey(*record)
            if self._socket.lost:
                self.refusal = self.refusal or "the connection to the dispatcher was lost"
                self._leaving = True
        return self._batches.popleft() if self._batches else None

    def send(self, record: Record | int) -> None:
        """A record, or the address of a message."""
        assert self._socket is not None
        self._socket.send(record if isinstance(record, int) else _link.new_message(_frames(record)))

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
            return _link.new_result(
                batch.id, batch.rows, encoded.key, encoded.buffers, Var, self._pool, owned
            )
        except ValueError as error:
            raise InvalidResult(f"_run_batch returned what cannot be sent: {error}") from None
