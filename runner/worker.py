"""Worker: a process that runs a runner's batches for a dispatcher.

What it is      gets a runner (pickled through a pipe from a supervisor, or imported by
                name), calls `_setup`, greets the dispatcher, and from then on answers
                each batch with one result or one error.
Guarantees      1. no error of the runner's code ends the process;
                2. it ends when its parent does: the kernel closes the pipe, whatever
                   happened to the parent;
                3. the runner, called from inside itself, raises instead of waiting for itself.
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

from .._native.rows import BufferPool
from ..errors import RunnerError
from .failures import model_failure
from .host import host_of
from .model import Model, NativeModel
from .native import native_plane
from .native_worker import NativeWorkerLink
from .wire import Greeting, Role, Type
from .worker_link import WorkerLink

__all__ = ["supervised", "work"]

# That a worker keeps to use again: batches that came, and results that libzmq still sends.
_LARGE_BUFFERS = 8
# glibc looks at blocks below 32 MiB for that.
_LARGEST_KEPT_BYTES = 31 << 20


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
    redials: bool = False,
    ready: Callable[[Callable[[], None]], None] | None = None,
) -> str:
    """Runs batches until it is to leave; returns why, or "" if somebody wanted that.

    Args:
        redials: a dispatcher that is lost is dialled again and again.
        ready: called after `_setup`, in the thread or loop that runs the batches, with a function
            for any thread, which has the worker leave when it has run what it was given.

    Raises what `_setup` raises.
    """
    runner._bind(_Inside())
    description = json.dumps({"token": token}).encode()
    hello = Greeting(Type.HELLO, Role.WORKER, runner.name, description, credits, os.getpid())
    model: Model
    link: NativeWorkerLink | WorkerLink
    if native_plane():
        _keep_memory()
        pool = BufferPool(keep=_LARGE_BUFFERS)
        model = NativeModel(runner, pool, allow_pickle=allow_pickle)
        link = NativeWorkerLink(endpoint, hello, pool, redials=redials)
    else:
        model = Model(runner, allow_pickle=allow_pickle)
        link = WorkerLink(endpoint, hello, redials=redials)

    def begin() -> None:
        if ready is not None:
            ready(link.leave)
        link.start()

    host_of(runner, model, credits).run(link, begin)
    link.close()
    return link.refusal


def _keep_memory() -> None:
    """glibc gives what is freed back to the system, to be mapped anew for the next message, unless a block of
    such a size was freed before: one is, of which no page was ever there."""
    np.empty(_LARGEST_KEPT_BYTES, np.uint8)


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
