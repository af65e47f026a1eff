"""`connect`: a runner that another process serves, called as if it were here.

Guarantees      1. one socket for each endpoint and runner in a process, whatever the number
                   of handles, threads and event loops;
                2. a call whose connection ends before its answer fails with
                   ServiceUnreachable and is never sent again; later calls connect anew.
Not promised    that a call that failed so did not run.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from .._native.calls import Call, Handle, ItemHandle
from ..budget import BudgetLookout
from ..errors import RunnerClosed
from ..options import BatchOptions
from ..statistics import Statistics
from .client_link import Link, Sent
from .closing import Closing
from .endpoints import allows_pickle, checked, checked_seconds
from .native import native_plane
from .native_client import NativeLink
from .outcomes import Outcomes, prepare
from .recipe import CallSignature, Plan

__all__ = ["ClientEngine", "ConnectedItemRunner", "ConnectedRunner", "connect"]


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
        ServiceUnreachable: nobody there, another runner's name, another protocol version, or an
            ipc socket that belongs to another user than this one or root.
        TypeError, ValueError: an argument that breaks a rule, with its value.
    """
    if keys is not None:
        raise ValueError("keys are not implemented yet: leave keys=None, and use ipc or tcp on loopback")
    timeout_s = checked_seconds("timeout_s", timeout_s)
    endpoint = checked(endpoint)
    link = _links.acquire(endpoint, name, timeout_s)
    try:
        allow_pickle = allows_pickle(endpoint)
        plan = Plan.read(link.greet(), allow_pickle=allow_pickle)
        engine = engine_on(link, plan.signature, plan.options)
    except BaseException:
        _links.release(link)
        raise
    return (ConnectedRunner if plan.batches else ConnectedItemRunner)(engine, name, endpoint, plan.options)


class _Connected(Closing):
    """What the connected handles share."""

    def __init__(self, engine: Any, name: str, endpoint: str, options: BatchOptions) -> None:
        self.name = name
        self.endpoint = endpoint
        self.options = options
        self._closed = False
        self._engine_of_close = engine
        self._budget = BudgetLookout(name, lambda: Statistics.from_numbers(engine.link.statistics()))
        self._bind(engine)

    def _bind(self, engine: Any) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise RunnerClosed(f"the connection to {self.name!r} was closed")

    def statistics(self) -> Statistics:
        """The numbers of the service, all its callers together. Raises ServiceUnreachable."""
        if self._closed:
            self._start()
        return Statistics.from_numbers(self._engine_of_close.link.statistics())

    def _check_budget(self) -> bool:
        budget_ms = self.options.max_latency_ms
        return budget_ms is not None and self._budget.look(budget_ms)

    def close(self) -> None:
        """Gives the handle up; calls that are out get their answers while other handles use
        the connection, else fail with RunnerClosed. A second close does nothing."""
        if not self._closed:
            self._closed = True
            self._bind(None)
            _links.release(self._engine_of_close.link)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.endpoint}>"


class ConnectedRunner(_Connected, Handle):
    """A runner served elsewhere: `run`, `run_batch` and their coroutines. Made by `connect`."""

    _bind = Handle._bind


class ConnectedItemRunner(_Connected, ItemHandle):
    """A SimpleRunner served elsewhere: `run` and `async_run`. Made by `connect`."""

    _bind = ItemHandle._bind


def new_link(endpoint: str, name: str, timeout_s: float) -> Link | NativeLink:
    """The native link, or the plain one where there is no native data plane."""
    if native_plane():
        return NativeLink(endpoint, name, timeout_s, allow_pickle=allows_pickle(endpoint))
    return Link(endpoint, name, timeout_s)


def engine_on(link: Link | NativeLink, signature: CallSignature, options: BatchOptions) -> Any:
    """The engine of handles whose calls go over the link."""
    if isinstance(link, NativeLink):
        return link.engine(signature, options)
    return ClientEngine(link, signature, options, allows_pickle(link.endpoint))


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
        sent, call.data = call.data, None
        if sent is not None:
            self.link.cancel(sent)


class _Links:
    """The links of this process, shared by handles on the same runner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[tuple[str, str], Link | NativeLink] = {}

    def acquire(self, endpoint: str, name: str, timeout_s: float) -> Link | NativeLink:
        with self._lock:
            link = self._links.get((endpoint, name))
            if link is None:
                link = self._links[endpoint, name] = new_link(endpoint, name, timeout_s)
            link.timeout_s = timeout_s
            link.users += 1
            return link

    def release(self, link: Link | NativeLink) -> None:
        with self._lock:
            link.users -= 1
            if link.users:
                return
            del self._links[link.endpoint, link.name]
        link.close()

    def forget_parent(self) -> None:
        self._lock = threading.Lock()


_links = _Links()
os.register_at_fork(after_in_child=_links.forget_parent)
