"""NativeDispatcher: `Dispatcher`, on a thread that needs no GIL."""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress
from itertools import dropwhile
from typing import Any

from ..errors import RunnerClosed
from ..options import BatchOptions
from ..payloads import Fixed, Var
from . import native
from .failures import error_of
from .recipe import CallSignature
from .router import Router
from .serving import Counters, Serving, later, rekeyed, welcoming
from .wire import Failure, Method, Packet, Rows, Type, parse

__all__ = ["NativeDispatcher"]

_NS_PER_MS = 1_000_000
_NEVER = -1
_LONGEST_NS = 2**62


class NativeDispatcher:
    """`Dispatcher`, on a thread that needs no GIL. A second thread hears of what Python has to know;
    a third, where there is one, runs the `group_by` of a runner.

    Methods: as `Dispatcher`; calls of this process come through `engine`.
    """

    def __init__(self, serving: Serving) -> None:
        name = serving.name
        self.endpoint = ""
        self._hooks = serving.hooks
        self._max_message_bytes = serving.max_message_bytes
        self._router = Router(serving.max_message_bytes)
        self._plane = native.plane.Plane(
            name, welcoming(serving.description, serving.max_message_bytes), *self._router.sockets,
            serving.scheduler,
            max_queue_rows=serving.max_queue_rows, run_timeout_ns=_timeout_ns(serving.run_timeout_ms),
            groups=serving.groups, allow_pickle=serving.allow_pickle,
            max_message_bytes=serving.max_message_bytes, max_unread_bytes=serving.max_unread_bytes,
        )  # fmt: skip
        self._pipe: native.pipe.Pipe | None = None
        self._drained = threading.Event()
        self._thread = threading.Thread(target=self._plane.run, name=f"batching-{name}", daemon=True)
        self._listener = threading.Thread(target=self._listen, name=f"batching-{name}-events", daemon=True)
        self._ended = False
        self._groups: queue.SimpleQueue[tuple[int, int, int] | None] = queue.SimpleQueue()
        self._grouper: threading.Thread | None = None
        if serving.groups:
            self._grouper = threading.Thread(
                target=self._group_all, name=f"batching-{name}-groups", daemon=True
            )

    def bind(self, endpoint: str) -> str:
        self.endpoint = self._router.bind(endpoint)
        return self.endpoint

    def start(self) -> None:
        self._thread.start()
        self._listener.start()
        if self._grouper is not None:
            self._grouper.start()

    def discard(self) -> None:
        """Instead of `start`."""
        self._plane.close()
        self._router.close()

    def engine(
        self, signature: CallSignature, options: BatchOptions, *, allow_pickle: bool
    ) -> native.pipe.PipeEngine:
        """What calls of this process go to: straight into the queue."""
        self._pipe = native.pipe.Pipe(self._submit, _refuse, native.error_maker(allow_pickle))
        self._pipe.max_message_bytes = self._max_message_bytes
        self._pipe.open()
        return native.pipe.PipeEngine(
            self._pipe, signature, options.max_latency_ms, allow_pickle=allow_pickle, fixed=Fixed, var=Var
        )

    def worker_died(self, token: str, failure: Failure) -> None:
        self._plane.worker_died(token, native.packed(failure))

    def fail_calls(self, failure: Failure | None) -> None:
        self._plane.fail_calls(None if failure is None else native.packed(failure))

    def set_options(self, changes: dict[str, Any], max_queue_rows: int, run_timeout_ms: float | None) -> None:
        self._plane.set_options(**changes)
        self._plane.set_limits(max_queue_rows, _timeout_ns(run_timeout_ms))

    def describe(self, description: bytes) -> None:
        self._plane.describe(welcoming(description, self._max_message_bytes))

    def statistics(self) -> dict[str, Any]:
        return self._plane.statistics()

    def drain(self, timeout_s: float | None = None) -> bool:
        self._plane.drain()
        return self._drained.wait(timeout_s)

    def dismiss_workers(self) -> None:
        self._plane.dismiss_workers()

    def end(self, failure: Failure) -> None:
        if not self._thread.is_alive():
            return
        self._plane.end(native.packed(failure))
        self._thread.join()
        self._ended = True
        self._groups.put(None)
        for thread in (self._listener, self._grouper):
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        if self._pipe is not None:
            self._pipe.fail_all(lambda: error_of(failure, allow_pickle=False))
        self._plane.close()
        self._router.close()

    @property
    def counters(self) -> Counters:
        """What went wrong on the wire, ever."""
        counters, numbers = Counters(), self._plane.statistics()
        counters.dropped, counters.cut_off = numbers["messages_dropped"], numbers["clients_cut_off"]
        return counters

    def inspect(self) -> tuple[int, list[int]]:
        return self._plane.inspect()

    def _submit(self, message: int) -> None:
        if not self._plane.submit(message) and self._pipe is not None:
            self._pipe.fail_all(_closed)

    def _listen(self) -> None:
        while events := self._events():
            for event in events:
                # An error of a hook is ours; it must not end the listening.
                with suppress(BaseException):
                    self._obey(*event)

    def _events(self) -> list[Any]:
        while True:
            with suppress(MemoryError):
                return self._plane.events()

    def _obey(self, kind: str, text: str, why: Any, number: int) -> None:
        match kind:
            case "local":
                try:
                    if self._pipe is not None:
                        self._pipe.receive(number)
                except BaseException:
                    self._lose()
                    raise
                finally:
                    native.link.drop(number)
            case "lost":
                self._lose()
            case "ready":
                self._hooks.worker_ready(text)
            case "kill":
                self._hooks.kill_worker(text, why)
            case "ask":
                try:
                    self._plane.reply(json.dumps(self.statistics()).encode())
                except BaseException:
                    self._plane.no_numbers()
                    raise
            case "group":
                ticket, at_ns = why
                try:
                    self._groups.put((ticket, at_ns, number))
                except BaseException:
                    native.link.drop(number)
                    self._plane.not_grouped(ticket)
                    raise
            case "ran":
                self._hooks.batches_ran()
            case "drained":
                self._drained.set()

    def _group_all(self) -> None:
        """The body of a thread: a hook may be slow, and nobody but the calls behind it is to wait for it."""
        while (item := self._groups.get()) is not None:
            ticket, at_ns, message = item
            with suppress(BaseException):
                if self._ended:
                    native.link.drop(message)
                    continue
                try:
                    self._group(ticket, at_ns, message)
                except BaseException:
                    self._plane.not_grouped(ticket)
                    raise

    def _lose(self) -> None:
        if self._pipe is not None:
            self._pipe.lose()

    def _group(self, ticket: int, at_ns: int, message: int) -> None:
        """Calls of a client that has not the runner's class: gives them the keys of their groups."""
        try:
            records = parse(native.link.frames_of(message))
        finally:
            native.link.drop(message)
        packet = Packet()
        for record in dropwhile(lambda record: record.type not in (Type.CALL, Type.CANCEL), records):
            if isinstance(record, Rows) and record.method == Method.RUN:
                packet.add(later(rekeyed(self._hooks, record), at_ns))
            else:
                packet.add(record)
        self._plane.grouped(ticket, packet.frames())


def _timeout_ns(ms: float | None) -> int:
    return _NEVER if ms is None else int(min(ms * _NS_PER_MS, _LONGEST_NS))


def _refuse() -> None:
    raise _closed()


def _closed() -> RunnerClosed:
    return RunnerClosed("the service was stopped: no new calls are taken")
