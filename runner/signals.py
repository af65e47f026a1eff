"""Signals that ask a process of the command line to leave.

Guarantees      1. the first SIGTERM or Ctrl-C calls `leave` at once, whatever the main thread
                   does: it may sit in a model's C code, or be about to fall asleep;
                2. the second one ends the process at once.
Why this shape  Python runs handlers in the main thread, between two instructions; the C part of
                them writes to a descriptor at once, which another thread reads. A loop has such a
                descriptor of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable

__all__ = ["FORCED", "on_request_to_leave"]

FORCED = 130  # the exit status of who was asked twice

_ASKING = (signal.SIGTERM, signal.SIGINT)
_kept: list[socket.socket] = []  # which the C handler writes to, for the life of the process


def on_request_to_leave(leave: Callable[[], None]) -> None:
    """Has the signals call `leave`: in the running loop, if there is one, else in a thread. By the
    main thread."""
    asked = _Asked(leave)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _in_a_thread(asked)
        return
    for number in _ASKING:
        loop.add_signal_handler(number, asked)


class _Asked:
    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._before = False

    def __call__(self) -> None:
        if self._before:
            os._exit(FORCED)
        self._before = True
        self._leave()


def _in_a_thread(asked: _Asked) -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    _kept.append(writer)

    def watch() -> None:
        while True:
            for number in reader.recv(64):
                if number in _ASKING:
                    asked()

    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in _ASKING:
        signal.signal(number, _nothing)
    threading.Thread(target=watch, name="batching-signals", daemon=True).start()


def _nothing(number: int, frame: object) -> None:
    """What is to be done is done by then, or under way in the other thread."""
