"""NativeLink: `Link`, whose callers write and read their records without a Python call each."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import zmq

from ..errors import BatchingError, RunnerClosed, ServiceUnreachable
from ..options import BatchOptions
from ..payloads import Fixed, Var
from . import native
from .connection import Connection
from .endpoints import distrust
from .recipe import CallSignature, message_limit, same_arguments
from .wire import VERSION, Greeting, Role, Type

__all__ = ["NativeLink"]

_NEVER = -1
# The low half of a request's id that is no call's.
_QUESTION = 0xFFFFFFFF


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
        self._engines: weakref.WeakSet[native.pipe.PipeEngine] = weakref.WeakSet()
        self._kept: list[Any] = []  # of a parent process: not to be touched, not even freed
        self._ended = False
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: native.link.LinkSocket | None = None
        self._together = False
        self._description: bytes | None = None
        self._greetings: list[tuple[int, Future[bytes]]] = []  # by the number of the HELLO that asks
        self._hellos = self._welcomes = 0  # of this connection
        self._questions: dict[int, Future[dict[str, Any]]] = {}
        self._next_question = 1
        self._pipe = native.pipe.Pipe(self._send, self._want, native.error_maker(self._allow_pickle))
        for engine in self._engines:
            engine.move(self._pipe)

    # ---- any thread ----------------------------------------------------------------

    def engine(self, signature: CallSignature, options: BatchOptions) -> native.pipe.PipeEngine:
        engine = native.pipe.PipeEngine(
            self._pipe, signature, options.max_latency_ms,
            allow_pickle=self._allow_pickle, fixed=Fixed, var=Var, link=self,
        )  # fmt: skip
        self._engines.add(engine)
        return engine

    def greet(self) -> bytes:
        """The service's description; connects if need be. Raises ServiceUnreachable."""
        greeting: Future[bytes] = Future()
        with self._lock:
            # A HELLO of its own, also over a live connection: options may have changed since its first.
            if self._socket is not None:
                self._hello(self._socket)
            self._greetings.append((self._hellos, greeting))
        self._want()
        try:
            return greeting.result(self.timeout_s)
        except TimeoutError:
            raise ServiceUnreachable(self._silence()) from None

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
            native.link.drop(message)
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
            socket = native.socket_of(Connection(context, self.endpoint))
        except (OSError, zmq.ZMQError) as error:
            self._unreachable(f"cannot connect to {self.endpoint}: {error}")
            return
        with self._lock:
            self._hellos = self._welcomes = 0
            self._hello(socket)
            self._greetings = [(self._hellos, greeting) for _, greeting in self._greetings]
            self._socket = socket
        try:
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

    def _turn(self, socket: native.link.LinkSocket, until_ns: int) -> str:
        """Takes what came; returns why the connection is over, or "" while it is not."""
        text = ""
        for message in socket.receive(_NEVER if self._together else until_ns):
            try:
                others = self._pipe.receive(message)
            finally:
                native.link.drop(message)
            for other in others:
                text = text or self._obey(*other)
        if socket.lost:
            text = text or f"the connection to {self.endpoint} was lost"
        if not self._together and time.monotonic_ns() >= until_ns:
            text = text or self._silence()
        return text

    def _hello(self, socket: native.link.LinkSocket) -> None:
        """Under the lock."""
        hello = Greeting(Type.HELLO, Role.CLIENT, self.name, pid=os.getpid())
        socket.send(native.link.new_message(native.packed(hello)))
        self._hellos += 1

    def _silence(self) -> str:
        return f"no dispatcher answered at {self.endpoint} within {self.timeout_s:g} s"

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
            self._welcomes += 1
            answered = [greeting for number, greeting in self._greetings if number <= self._welcomes]
            self._greetings = [entry for entry in self._greetings if entry[0] > self._welcomes]
        self._pipe.max_message_bytes = message_limit(description)
        self._pipe.open()
        for greeting in answered:
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
        except (ValueError, RecursionError) as error:
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
        futures: list[Future[Any]] = [*(greeting for _, greeting in greetings), *questions.values()]
        for future in futures:
            future.set_exception(ServiceUnreachable(text))


_alive: weakref.WeakSet[NativeLink] = weakref.WeakSet()


def _after_fork() -> None:
    for link in list(_alive):
        link.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
