"""Dispatcher: one thread between all callers and all workers.

What it is      owns the ROUTER socket and the ledger; admits calls, hands a batch to a
                worker at the moment it has a free credit, and answers.
Guarantees      1. every accepted call gets one answer, also when its worker dies, its
                   batch raises, the dispatcher closes, or this very thread fails;
                2. nothing that a peer sends stops the loop: it is dropped and counted;
                3. no polling: it sleeps until a message, a post, or a time that the
                   scheduler, a run timeout or a close named.
Not promised    that a client that does not read gets its answers: it is cut off.
Why this shape  one owner for socket, scheduler and payloads, so that none needs a lock.
                The process that owns it posts its calls straight into its mailbox.
                A native data plane takes the place of this class behind the same methods.
"""

from __future__ import annotations

import enum
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from .._native.scheduler import Scheduler
from .buffers import join
from .ledger import Entry, Ledger, Part
from .mailbox import Mailbox
from .peers import Client, Peers, Running, Worker
from .wire import (
    NONE,
    VERSION,
    BadPacket,
    Code,
    Failure,
    Greeting,
    Packet,
    Plain,
    Record,
    Role,
    Rows,
    Type,
    parse,
)

__all__ = ["Counters", "Dispatcher", "Hooks"]

_NS_PER_MS = 1_000_000
_LOCAL = 0  # the client number of the process that owns the dispatcher

# Messages to one peer that may wait in libzmq. A worker never has more than its credits
# out. A client that is this many behind does not read: it is cut off, so that its memory
# is bounded; each of its messages holds all answers of one turn.
_SEND_HIGH_WATER = 1_000
# Messages from one peer that may wait before its own socket stops taking more: the
# queue's bound, max_queue_rows, answers calls that come faster than they are served.
_RECEIVE_HIGH_WATER = 10_000
# Messages taken in one turn before what they ask for is done.
_MESSAGES_A_TURN = 1_000
# On tcp a peer that vanished without a word is noticed by libzmq itself.
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 6_000
_LINGER_MS = 500


class Hooks:
    """What a dispatcher tells its owner. All of them are called in its thread."""

    def worker_ready(self, token: str) -> None:
        """The supervised worker greeted."""

    def kill_worker(self, token: str, why: str) -> None:
        """The supervised worker hangs or lost its connection. Its death is awaited."""

    def settle_turn(self) -> None:
        """The outcomes of this turn are complete."""

    def rekey(self, call: Rows) -> Rows:
        """A call of a client that could not group it itself."""
        return call


class Counters:
    """What went wrong on the wire, ever."""

    def __init__(self) -> None:
        self.dropped = 0  # packets and records without a meaning here
        self.cut_off = 0  # clients that did not read


class _State(enum.Enum):
    OPEN = enum.auto()
    DRAINING = enum.auto()  # refuses calls, answers those it has
    ENDED = enum.auto()


class Dispatcher:
    """Serves one runner at one or more endpoints.

    Args:
        name: the runner's; a peer that greets for another is refused.
        description: JSON for WELCOME.
        scheduler: fresh, owned by the dispatcher from here on.
        run_timeout_ms: a worker whose batch takes longer is killed; None: never.

    `submit`, `cancel` and the other public methods may be called from any thread.
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
        self.counters = Counters()
        self._name = name
        self._description = description
        self._hooks = hooks
        self._run_timeout_ms = run_timeout_ms
        self._ledger = Ledger(scheduler, max_queue_rows)
        self._peers = Peers()
        self._mailbox = Mailbox()
        self._state = _State.OPEN
        self._gate = threading.Lock()  # between the last post and the end of taking them
        self._drained: Future[None] = Future()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._monitor: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, name=f"batching-{name}", daemon=True)
        self._failing: Failure | None = None

    # ---- any thread ------------------------------------------------------------

    def bind(self, endpoint: str) -> str:
        """Listens; returns the endpoint with its real port. Before `start`."""
        socket = self._socket
        # A message to a peer that is gone or full is an error here, never dropped silently.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _RECEIVE_HIGH_WATER)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, 2**31)
        if endpoint.startswith("tcp:"):
            socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.bind(endpoint)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return self.endpoint

    def start(self) -> None:
        self._thread.start()

    def submit(self, entry: Entry) -> bool:
        """Queues a call of this process. False if the dispatcher takes none any more."""
        with self._gate:
            if self._state is not _State.OPEN:
                return False
            self._mailbox.post(self._admit, entry)
            return True

    def flush(self) -> None:
        """Takes what was submitted now, not at the end of the loop's turn."""
        self._mailbox.wake()

    def cancel(self, entry: Entry) -> None:
        self._mailbox.post(self._ledger.cancel, entry)

    def worker_died(self, token: str, failure: Failure) -> None:
        """A supervised worker is gone; its batches go to others, or fail with `failure`."""
        self._mailbox.urge(self._worker_died, (token, failure))

    def fail_calls(self, failure: Failure | None) -> None:
        """Every waiting and later call fails with this, until None is passed."""
        self._mailbox.urge(self._set_failing, failure)

    def set_options(self, changes: dict[str, Any], max_queue_rows: int, run_timeout_ms: float | None) -> None:
        """The scheduler's changed options, from the next batch on."""
        self._mailbox.urge(self._change_options, (changes, max_queue_rows, run_timeout_ms))

    def statistics(self) -> dict[str, Any]:
        """The scheduler's own numbers, with the `groups` seen and `workers_ready`. Waits for a turn."""
        answer: Future[dict[str, Any]] = Future()
        with self._gate:
            if self._state is not _State.ENDED:
                self._mailbox.urge(self._tell_statistics, answer)
                waited = True
            else:
                waited = False
        return answer.result() if waited else self._numbers()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuses new calls and waits until those accepted have their answers."""
        with self._gate:
            if self._state is _State.OPEN:
                self._state = _State.DRAINING
        self._mailbox.urge(self._nothing)
        with suppress(TimeoutError):
            self._drained.result(timeout_s)
            return True
        return False

    def dismiss_workers(self) -> None:
        """Tells every worker to leave once it has finished what it has."""
        self._mailbox.urge(self._dismiss)

    def end(self, failure: Failure) -> None:
        """Fails what is left, says goodbye, and ends the thread. Idempotent."""
        self._mailbox.urge(self._end, failure)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def discard(self) -> None:
        """For a dispatcher that was never started."""
        self._mailbox.close()
        self._release_sockets()

    # ---- the thread ------------------------------------------------------------

    def _serve(self) -> None:
        failure = Failure(0, Code.CLOSED, "the service was stopped")
        try:
            poller = self._poller()
            while self._state is not _State.ENDED:
                poller.poll(self._timeout_ms())
                self._turn()
        except BaseException as error:  # our bug: no caller may hang for it
            failure = Failure(0, Code.CLOSED, f"the dispatcher failed: {type(error).__name__}: {error}")
            raise
        finally:
            self._close(failure)

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._mailbox.fileno(), zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        return poller

    def _turn(self) -> None:
        for frames in self._messages():
            self._receive(frames)
        for handler, argument in self._mailbox.take():
            handler(argument)
        self._read_monitor()
        self._kill_hung()
        self._dispatch()
        while self._flush():
            self._dispatch()
        if self._state is _State.DRAINING and not self._ledger and not self._drained.done():
            self._drained.set_result(None)

    def _timeout_ms(self) -> int | None:
        times = [running.kill_ns for worker in self._peers.workers for running in worker.running.values()
                 if running.kill_ns is not None and not worker.hung]  # fmt: skip
        if self._ledger.until_ns is not None:
            times.append(self._ledger.until_ns)
        if not times:
            return None
        left_ns = min(times) - time.monotonic_ns()
        return max(0, min(-(-left_ns // _NS_PER_MS), 2**31 - 1))

    def _messages(self) -> Iterator[list[zmq.Frame]]:
        for _ in range(_MESSAGES_A_TURN):
            try:
                yield self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return

    def _receive(self, frames: list[zmq.Frame]) -> None:
        identity = frames[0].bytes
        peer = self._peers.get(identity)
        try:
            records = parse([frame.buffer for frame in frames[1:]])
        except BadPacket as error:
            self.counters.dropped += 1
            if isinstance(peer, Client):
                for id_ in error.ids:
                    self._post(peer, Failure(id_, Code.MALFORMED, f"malformed packet: {error}"))
            return
        for record in records:
            if record.type == Type.HELLO:
                self._greet(identity, frames[1], record)
                peer = self._peers.get(identity)
            elif peer is None:
                self.counters.dropped += 1
                if record.type not in (Type.ERROR, Type.BYE):
                    self._reply(identity, Failure(0, Code.UNREACHABLE, "not connected here: say HELLO first"))
                return
            else:
                self._obey(peer, record)

    def _obey(self, peer: Client | Worker, record: Record) -> None:
        match record.type:
            case Type.CALL if isinstance(peer, Client):
                self._call(peer, record)
            case Type.CANCEL if isinstance(peer, Client):
                entry = peer.calls.pop(record.id, None)
                if entry is not None:
                    self._ledger.cancel(entry)
            case Type.RESULT if isinstance(peer, Worker):
                self._result(peer, record)
            case Type.ERROR if isinstance(peer, Worker):
                self._raised(peer, record)
            case Type.PING:
                self._post(peer, Plain(Type.PONG, record.id))
            case Type.BYE:
                self._leave(peer)
            case Type.PONG:
                pass
            case _:
                self.counters.dropped += 1

    # ---- greetings ---------------------------------------------------------------

    def _greet(self, identity: bytes, frame: zmq.Frame, hello: Greeting) -> None:
        if not hello.lowest <= VERSION <= hello.highest:
            rule = f"protocol versions {hello.lowest} to {hello.highest} asked for, {VERSION} spoken here"
        elif hello.name != self._name:
            rule = f"no runner {hello.name!r} here, only {self._name!r}"
        elif hello.role not in (Role.CLIENT, Role.WORKER):
            rule = "only clients and workers say HELLO"
        elif self._state is not _State.OPEN:
            rule = f"the service of {self._name!r} is closing"
        else:
            rule = ""
        if rule:
            self._reply(identity, Failure(0, Code.UNREACHABLE, rule))
            return
        # A connection that ended gave its descriptor back: read of that before the
        # descriptor's next owner is noted, or the newcomer would be taken for gone.
        self._read_monitor()
        peer = self._peers.get(identity)
        if peer is None:
            fd = _source_fd(frame)
            if hello.role == Role.CLIENT:
                peer = Client(identity, fd)
            else:
                peer = Worker(identity, fd, credits=max(1, hello.credits), token=_token(hello), pid=hello.pid)
            self._peers.add(peer)
            if isinstance(peer, Worker):
                self._hooks.worker_ready(peer.token)
        self._post(peer, Greeting(Type.WELCOME, Role.DISPATCHER, self._name, self._description))

    def _read_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            for peer in self._peers.with_fd(int(event["value"])):
                self._leave(peer)

    def _leave(self, peer: Client | Worker) -> None:
        """The connection ended, on purpose or not."""
        if isinstance(peer, Worker) and peer.token:
            # Its supervisor tells how it died, and then its batches are dealt with.
            peer.hung = True
            self._hooks.kill_worker(peer.token, "it lost its connection")
            return
        if not self._peers.remove(peer):
            return
        if isinstance(peer, Worker):
            where = f"worker {peer.pid}" if peer.pid else "a worker"
            self._lose(
                peer, Failure(0, Code.WORKER_DIED, f"{where} lost its connection with the call's batch")
            )
            return
        for entry in peer.calls.values():
            self._ledger.cancel(entry)
        peer.calls.clear()

    # ---- calls -------------------------------------------------------------------

    def _call(self, client: Client, record: Rows) -> None:
        if record.id in client.calls:  # a frame that came twice
            self.counters.dropped += 1
            return
        if self._state is not _State.OPEN:
            self._post(client, Failure(record.id, Code.CLOSED, "the service is closing"))
            return
        try:
            record = self._hooks.rekey(record)
        except Exception as error:
            self._post(client, Failure(record.id, Code.INVALID_PAYLOAD, str(error)))
            return
        budget = record.budget_ns
        deadline = NONE if budget == NONE else time.monotonic_ns() + budget
        origin = RemoteOrigin(self, client, record.id)
        entry = Entry(origin, record.rows, record.key, record.buffers, deadline)
        client.calls[record.id] = entry
        self._admit(entry)

    def _admit(self, entry: Entry) -> None:
        if self._failing is not None:
            entry.origin.fail(self._failing)
        else:
            self._ledger.admit(time.monotonic_ns(), entry)

    def _dispatch(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            batch = self._ledger.next_batch(now_ns, *self._peers.slots())
            if batch is None:
                return
            worker = self._peers.free_worker()
            kill_ns = (
                None if self._run_timeout_ms is None else now_ns + int(self._run_timeout_ms * _NS_PER_MS)
            )
            worker.running[batch.id] = Running(batch.record.rows, kill_ns)
            self._post(worker, batch.record)

    # ---- workers -------------------------------------------------------------------

    def _result(self, worker: Worker, record: Rows) -> None:
        running = self._finished(worker, record.id)
        if running is None:
            return
        if record.rows == running.rows:
            self._ledger.answered(time.monotonic_ns(), record.id, record)
            return
        text = f"a worker was given {running.rows} rows and answered {record.rows}"
        self._ledger.ended(time.monotonic_ns(), record.id, "invalid", Failure(0, Code.BAD_RESULT, text))

    def _raised(self, worker: Worker, failure: Failure) -> None:
        if self._finished(worker, failure.id) is not None:
            how = "invalid" if failure.code == Code.BAD_RESULT else "raised"
            self._ledger.ended(time.monotonic_ns(), failure.id, how, failure)

    def _finished(self, worker: Worker, batch: int) -> Running | None:
        """Takes the batch from the worker. None for one that it does not have: its late
        or repeated words change nothing."""
        running = worker.running.pop(batch, None)
        if running is None:
            self.counters.dropped += 1
        else:
            self._peers.freed(worker)
        return running

    def _worker_died(self, notice: tuple[str, Failure]) -> None:
        token, failure = notice
        # What it sent before it died counts.
        for frames in self._messages():
            self._receive(frames)
        worker = self._peers.with_token(token)
        if worker is not None and self._peers.remove(worker):
            self._lose(worker, failure)

    def _lose(self, worker: Worker, failure: Failure) -> None:
        for batch in list(worker.running):
            del worker.running[batch]
            self._ledger.ended(time.monotonic_ns(), batch, "died", failure)

    def _kill_hung(self) -> None:
        if self._run_timeout_ms is None:
            return
        now_ns = time.monotonic_ns()
        for worker in list(self._peers.workers):
            late = any(r.kill_ns is not None and r.kill_ns <= now_ns for r in worker.running.values())
            if not late or worker.hung:
                continue
            why = f"its batch took longer than run_timeout_ms={self._run_timeout_ms:g}"
            if worker.token:
                worker.hung = True
                self._hooks.kill_worker(worker.token, why)
            elif self._peers.remove(worker):
                self._reply(worker.identity, Failure(0, Code.UNREACHABLE, f"dismissed: {why}"))
                self._lose(worker, Failure(0, Code.WORKER_DIED, f"a worker was given up: {why}"))

    def _dismiss(self, _: None) -> None:
        for worker in self._peers.workers:
            self._post(worker, Plain(Type.STOP))

    # ---- sending --------------------------------------------------------------------

    def _post(self, peer: Client | Worker, record: Record) -> None:
        for packet in self._peers.post(peer, record):
            self._send(peer, packet)

    def _flush(self) -> bool:
        """Sends what this turn made. True if that lost a peer: there may be more to do."""
        lost = False
        for peer, packet in self._peers.outgoing():
            lost |= not self._send(peer, packet)
        self._hooks.settle_turn()
        return lost

    def _send(self, peer: Client | Worker, packet: Packet) -> bool:
        try:
            self._socket.send_multipart([peer.identity, *packet.frames()], zmq.NOBLOCK, copy=False)
            return True
        except zmq.Again:
            self.counters.cut_off += 1
        except zmq.ZMQError:  # EHOSTUNREACH: it is gone
            pass
        self._leave(peer)
        return False

    def _reply(self, identity: bytes, record: Record) -> None:
        """To somebody who is no peer."""
        packet = Packet()
        packet.add(record)
        with suppress(zmq.ZMQError):
            self._socket.send_multipart([identity, *packet.frames()], zmq.NOBLOCK)

    # ---- posts and the end -----------------------------------------------------------

    def _nothing(self, _: None) -> None:
        """A post that only wakes the thread."""

    def _set_failing(self, failure: Failure | None) -> None:
        self._failing = failure
        if failure is not None:
            self._ledger.fail_all(failure)

    def _change_options(self, change: tuple[dict[str, Any], int, float | None]) -> None:
        changes, self._ledger.max_queue_rows, self._run_timeout_ms = change
        self._ledger.scheduler.set_options(**changes)

    def _tell_statistics(self, answer: Future[dict[str, Any]]) -> None:
        answer.set_result(self._numbers())

    def _numbers(self) -> dict[str, Any]:
        numbers = self._ledger.scheduler.statistics()
        numbers["groups"] = self._ledger.groups_seen
        numbers["workers_ready"] = sum(not worker.hung for worker in self._peers.workers)
        return numbers

    def _end(self, failure: Failure) -> None:
        self._ledger.fail_all(failure)
        for peer in self._peers:
            self._post(peer, Plain(Type.BYE))
        self._flush()
        self._state = _State.ENDED

    def _close(self, failure: Failure) -> None:
        # In this order. First no new posts: whoever comes later is refused at the gate.
        with self._gate:
            self._state = _State.ENDED
        # Then those that came before are taken, so that their calls are in the ledger
        # and queries are answered; then everything in the ledger fails.
        with suppress(Exception):
            self._failing = self._failing or failure
            for handler, argument in self._mailbox.take():
                handler(argument)
        self._ledger.fail_all(failure)
        self._hooks.settle_turn()
        if not self._drained.done():
            self._drained.set_result(None)
        self._mailbox.close()
        self._release_sockets()

    def _release_sockets(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()
        self._context.term()


class RemoteOrigin:
    """A call of a client: its outcome leaves as a record."""

    __slots__ = ("_client", "_dispatcher", "_id", "client")

    def __init__(self, dispatcher: Dispatcher, client: Client, id_: int) -> None:
        self._dispatcher = dispatcher
        self._client = client
        self._id = id_
        self.client = client.number

    def answer(self, parts: list[Part]) -> None:
        if self._client.calls.pop(self._id, None) is None:
            return
        keys = {part.key for part in parts}
        if len(keys) > 1:
            self._post(
                Failure(self._id, Code.BAD_RESULT, "the parts of the call differ in kind, dtype or columns")
            )
            return
        rows = sum(part.rows for part in parts)
        self._post(Rows(Type.ANSWER, self._id, rows, parts[0].key, join([part.buffers for part in parts])))

    def fail(self, failure: Failure) -> None:
        if self._client.calls.pop(self._id, None) is not None:
            self._post(_readdressed(failure, self._id))

    def _post(self, record: Record) -> None:
        self._dispatcher._post(self._client, record)


def _readdressed(failure: Failure, id_: int) -> Failure:
    return Failure(
        id_, failure.code, failure.message, failure.type_name, failure.traceback,
        failure.cause, failure.exit_code, failure.number,
    )  # fmt: skip


def _token(hello: Greeting) -> str:
    """What the worker's supervisor calls it; empty if it has none."""
    try:
        token = json.loads(hello.description or b"{}").get("token", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return token if isinstance(token, str) else ""


def _source_fd(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, AttributeError, ValueError):
        return -1
