"""`connect`: a runner that another process serves, called as if it were here.

Guarantees      1. one socket for each endpoint and runner in a process, whatever the number of handles,
                   threads and event loops: calls are told apart by number;
                2. calls made in one turn of a loop leave as one message;
                3. a call whose connection ends before its answer fails with
                   ServiceUnreachable and is never sent again; later calls connect anew.
Not promised    that a call that failed so did not run.
Why this shape  one thread owns the socket; callers encode and decode nothing in it but
                through the mailbox, and a forked child starts over.
"""

from __future__ import annotations

import enum
import itertools
import os
import threading
import time
import weakref
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import zmq

from .._native.calls import Call, Handle, ItemHandle
from ..errors import RunnerClosed, ServiceUnreachable
from ..options import BatchOptions
from .connection import Connection
from .endpoints import allows_pickle, checked
from .ledger import Part
from .mailbox import Mailbox
from .outcomes import Outcomes, Outgoing, prepare
from .recipe import CallSignature, Plan
from .wire import NONE, VERSION, Code, Failure, Greeting, Plain, Record, Role, Rows, Type

__all__ = ["ClientEngine", "ConnectedItemRunner", "ConnectedRunner", "Link", "connect"]


def connect(
    endpoint: str, name: str, *, keys: object = None, timeout_s: float = 5
) -> ConnectedRunner | ConnectedItemRunner:
    """A handle on the runner `name` that is served at `endpoint`; shakes hands at once.

    The handle has the runner's calls, from any thread and event loop of this process. When
    the connection is lost, calls that are out fail and are never sent again; later calls
    connect anew.

    Args:
        endpoint: what the service prints or says as its `endpoint`.
        name: the runner's name.
        keys: reserved: tcp beyond loopback comes with a later version. Must be None.
        timeout_s: seconds for the handshake, now and whenever it is to be done again.

    Raises:
        ServiceUnreachable: nobody there, another runner's name, another protocol version.
        ValueError: an endpoint that breaks a rule.
    """
    if keys is not None:
        raise ValueError("keys are not implemented yet: leave keys=None, and use ipc or tcp on loopback")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s must be above 0, got {timeout_s!r}")
    endpoint = checked(endpoint)
    link = _links.acquire(endpoint, name, timeout_s)
    try:
        allow_pickle = allows_pickle(endpoint)
        plan = Plan.read(link.greet(), allow_pickle=allow_pickle)
        engine = ClientEngine(link, plan.signature, plan.options, allow_pickle)
    except BaseException:
        _links.release(link)
        raise
    return (ConnectedRunner if plan.batches else ConnectedItemRunner)(engine, name, endpoint, plan.options)


class _Connected:
    """What the connected handles share."""

    def __init__(self, engine: ClientEngine, name: str, endpoint: str, options: BatchOptions) -> None:
        self.name = name
        self.endpoint = endpoint
        self.options = options
        self._closed = False
        self._engine_of_close = engine
        self._bind(engine)

    def _bind(self, engine: ClientEngine | None) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise RunnerClosed(f"the connection to {self.name!r} was closed")

    def close(self) -> None:
        """Gives the handle up; calls that are out get their answers while other handles use
        the connection, else fail with RunnerClosed. A second close does nothing."""
        if not self._closed:
            self._closed = True
            self._bind(None)
            _links.release(self._engine_of_close.link)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.endpoint}>"


class ConnectedRunner(_Connected, Handle):
    """A runner served elsewhere: `run`, `run_batch` and their coroutines. Made by `connect`."""

    _bind = Handle._bind


class ConnectedItemRunner(_Connected, ItemHandle):
    """A SimpleRunner served elsewhere: `run` and `async_run`. Made by `connect`."""

    _bind = ItemHandle._bind


class ClientEngine:
    """The engine of handles on a service in another process."""

    def __init__(
        self, link: Link, signature: CallSignature, options: BatchOptions, allow_pickle: bool
    ) -> None:
        self.link = link
        self.max_latency_ms = options.max_latency_ms
        self._signature = signature
        self._allow_pickle = allow_pickle
        self._outcomes = Outcomes(signature, allow_pickle=allow_pickle)

    def submit(self, call: Call) -> None:
        out = prepare(self._signature, call, allow_pickle=self._allow_pickle)
        call.data = sent = Sent(out, self._outcomes)
        self.link.submit(sent)

    def assist(self, call: Call) -> int:
        # The caller blocks now: no end of a loop's turn will come to send its call.
        self.link.flush()
        return -1

    def cancel(self, call: Call) -> None:
        self.link.cancel(call.data)


class Sent:
    """A call on its way. `id` is 0 before it left and after its outcome."""

    __slots__ = ("id", "out", "outcomes")

    def __init__(self, out: Outgoing, outcomes: Outcomes) -> None:
        self.id = 0
        self.out = out
        self.outcomes = outcomes


class _State(enum.Enum):
    APART = enum.auto()  # no socket
    GREETING = enum.auto()  # HELLO is out
    TOGETHER = enum.auto()
    ENDED = enum.auto()


class Link:
    """One socket to one dispatcher, and the thread that owns it. Public methods: any thread."""

    def __init__(self, endpoint: str, name: str, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.name = name
        self.timeout_s = timeout_s
        self.users = 0  # the registry's
        self._kept: list[Any] = []  # of a parent process: not to be touched, not even freed
        self._begin()
        _all_links.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._mailbox = Mailbox()
        self._thread: threading.Thread | None = None
        self._state = _State.APART
        self._connection: Connection | None = None
        self._poller: zmq.Poller | None = None
        self._greet_until_ns = 0
        self._ids = itertools.count(1)
        self._greetings: list[Future[bytes]] = []
        self._waiting: dict[Sent, None] = {}  # until the handshake is done
        self._calls: dict[int, Sent] = {}
        self._outbox: list[Record] = []
        self._touched: dict[Outcomes, None] = {}
        self._description: bytes | None = None

    # ---- any thread ----------------------------------------------------------------

    def greet(self) -> bytes:
        """The service's description; connects if need be. Raises ServiceUnreachable."""
        greeting: Future[bytes] = Future()
        self._run()
        self._mailbox.urge(self._greet, greeting)
        return greeting.result()

    def submit(self, sent: Sent) -> None:
        with self._lock:
            if self._state is _State.ENDED:
                raise RunnerClosed(f"the connection to {self.name!r} was closed")
            if self._thread is None:
                self._run_locked()
            self._mailbox.post(self._submit, sent)

    def flush(self) -> None:
        self._mailbox.wake()

    def cancel(self, sent: Sent) -> None:
        self._mailbox.post(self._cancel, sent)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                self._state = _State.ENDED
                return
        self._mailbox.urge(self._end)
        thread.join()

    def forget_parent(self) -> None:
        """In a fork's child: starts over with a socket and thread of its own."""
        self._kept.append((self._mailbox, self._connection, self._poller, self._calls, self._waiting))
        ended = self._state is _State.ENDED
        self._begin()
        if ended:
            self._state = _State.ENDED

    def _run(self) -> None:
        with self._lock:
            if self._thread is None:
                self._run_locked()

    def _run_locked(self) -> None:
        self._thread = threading.Thread(target=self._serve, name=f"batching-client-{self.name}", daemon=True)
        self._thread.start()

    # ---- the thread ------------------------------------------------------------------

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context = context
        reason = Failure(0, Code.CLOSED, f"the connection to {self.name!r} was closed")
        try:
            while self._state is not _State.ENDED:
                self._poll()
                self._turn()
        except BaseException as error:  # our bug: no caller may hang for it
            reason = Failure(0, Code.UNREACHABLE, f"the client failed: {type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                self._state = _State.ENDED
            for handler, argument in self._mailbox.take():
                if handler == self._submit:
                    self._waiting[argument] = None
                elif handler == self._greet:
                    self._greetings.append(argument)
            self._part(reason)
            self._settle()
            self._mailbox.close()
            context.term()

    def _poll(self) -> None:
        poller = self._poller
        if poller is None:
            poller = self._poller = zmq.Poller()
            poller.register(self._mailbox.fileno(), zmq.POLLIN)
            if self._connection is not None:
                self._connection.register(poller)
        timeout_ms = None
        if self._state is _State.GREETING:
            timeout_ms = max(0, -(-(self._greet_until_ns - time.monotonic_ns()) // 1_000_000))
        poller.poll(timeout_ms)

    def _turn(self) -> None:
        for handler, argument in self._mailbox.take():
            handler(argument)
        connection = self._connection
        if connection is not None:
            for records in connection.messages():
                for record in records:
                    self._obey(record)
            if connection.lost:
                self._unreachable(f"the connection to {self.endpoint} was lost")
        if self._state is _State.GREETING and time.monotonic_ns() >= self._greet_until_ns:
            self._unreachable(f"no dispatcher answered at {self.endpoint} within {self.timeout_s:g} s")
        if self._outbox and self._connection is not None:
            self._connection.send(self._outbox)
        self._outbox = []
        self._settle()

    def _settle(self) -> None:
        touched, self._touched = self._touched, {}
        for outcomes in touched:
            outcomes.settle()

    # ---- posts -------------------------------------------------------------------------

    def _greet(self, greeting: Future[bytes]) -> None:
        if self._state is _State.TOGETHER and self._description is not None:
            greeting.set_result(self._description)
            return
        self._greetings.append(greeting)
        self._connect()

    def _submit(self, sent: Sent) -> None:
        if self._state is _State.TOGETHER:
            self._send(sent)
        else:
            self._waiting[sent] = None
            self._connect()

    def _cancel(self, sent: Sent) -> None:
        self._waiting.pop(sent, None)
        if self._calls.pop(sent.id, None) is not None:
            self._outbox.append(Plain(Type.CANCEL, sent.id))

    def _end(self, _: None) -> None:
        if self._state is _State.TOGETHER:
            self._outbox.append(Plain(Type.BYE))
        self._state = _State.ENDED

    # ---- the connection ------------------------------------------------------------------

    def _connect(self) -> None:
        if self._state is not _State.APART:
            return
        self._state = _State.GREETING
        self._greet_until_ns = time.monotonic_ns() + int(self.timeout_s * 1e9)
        try:
            self._connection = Connection(self._context, self.endpoint)
        except zmq.ZMQError as error:
            self._unreachable(f"cannot connect to {self.endpoint}: {error}")
            return
        self._poller = None
        self._connection.send([Greeting(Type.HELLO, Role.CLIENT, self.name, pid=os.getpid())])

    def _part(self, failure: Failure) -> None:
        """The connection is over: everything that needed it fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._poller = None
        self._outbox = []
        for sent in [*self._waiting, *self._calls.values()]:
            self._fail(sent, failure)
        self._waiting, self._calls = {}, {}
        for greeting in self._greetings:
            greeting.set_exception(ServiceUnreachable(failure.message))
        self._greetings = []

    def _unreachable(self, text: str) -> None:
        self._state = _State.APART
        self._part(Failure(0, Code.UNREACHABLE, text))

    def _obey(self, record: Record) -> None:
        match record.type:
            case Type.ANSWER:
                sent = self._calls.pop(record.id, None)
                if sent is not None:
                    self._answer(sent, record)
            case Type.ERROR if record.id:
                sent = self._calls.pop(record.id, None)
                if sent is not None:
                    self._fail(sent, record)
            case Type.ERROR:
                self._unreachable(record.message)
            case Type.WELCOME:
                self._welcome(record)
            case Type.BYE:
                self._unreachable(f"the service at {self.endpoint} was stopped")
            case Type.PING:
                self._outbox.append(Plain(Type.PONG, record.id))
            case _:
                pass

    def _welcome(self, record: Greeting) -> None:
        if self._state is not _State.GREETING:
            return
        if not record.lowest <= VERSION <= record.highest:
            self._unreachable(
                f"the service speaks versions {record.lowest} to {record.highest}, not {VERSION}"
            )
            return
        if self._description not in (None, record.description):
            # The calls at hand were made for another signature.
            self._description = record.description
            self._unreachable(
                f"the runner {self.name!r} was replaced by one with other arguments: connect again"
            )
            return
        self._state = _State.TOGETHER
        self._description = record.description
        for greeting in self._greetings:
            greeting.set_result(record.description)
        waiting, self._greetings, self._waiting = self._waiting, [], {}
        for sent in waiting:
            self._send(sent)

    def _send(self, sent: Sent) -> None:
        sent.id = next(self._ids)
        self._calls[sent.id] = sent
        out = sent.out
        deadline_ns = out.call.deadline_ns
        budget_ns = NONE if deadline_ns < 0 else max(0, deadline_ns - time.monotonic_ns())
        self._outbox.append(Rows(Type.CALL, sent.id, out.rows, out.key, out.buffers, budget_ns))

    def _answer(self, sent: Sent, record: Rows) -> None:
        self._touched[sent.outcomes] = None
        sent.outcomes.answer(sent.out, [Part(0, record.rows, record.key, record.buffers)])

    def _fail(self, sent: Sent, failure: Failure) -> None:
        self._touched[sent.outcomes] = None
        sent.outcomes.fail(sent.out, failure)


class _Links:
    """The links of this process, shared by handles on the same runner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[tuple[str, str], Link] = {}

    def acquire(self, endpoint: str, name: str, timeout_s: float) -> Link:
        with self._lock:
            link = self._links.get((endpoint, name))
            if link is None:
                link = self._links[endpoint, name] = Link(endpoint, name, timeout_s)
            link.timeout_s = timeout_s
            link.users += 1
            return link

    def release(self, link: Link) -> None:
        with self._lock:
            link.users -= 1
            if link.users:
                return
            del self._links[link.endpoint, link.name]
        link.close()

    def forget_lock(self) -> None:
        self._lock = threading.Lock()


_links = _Links()
_all_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork() -> None:
    _links.forget_lock()
    for link in list(_all_links):
        link.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
