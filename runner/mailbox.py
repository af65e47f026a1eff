"""Mailbox: how other threads reach a thread that sleeps in poll.

Guarantees      1. posts are taken in the order in which they were made;
                2. what is posted while a loop's turn runs wakes the sleeper once, at
                   the end of that turn: calls made together leave together;
                3. a post is never lost between two wake-ups.
Not promised    that a post made after the last `take` is ever taken: whoever ends
                the sleeper takes what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Mailbox"]

Post = tuple[Callable[[Any], None], Any]


class Mailbox:
    """Any thread posts, one thread takes; that thread polls `fileno()`."""

    def __init__(self) -> None:
        self._posts: deque[Post] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._signalled = False
        self._turns: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def fileno(self) -> int:
        return self._reader.fileno()

    def post(self, handler: Callable[[Any], None], argument: Any = None) -> None:
        """Have the sleeper call `handler(argument)` soon."""
        self._posts.append((handler, argument))
        loop = asyncio._get_running_loop()
        if loop is None:
            self.wake()
        elif loop not in self._turns:
            self._turns.add(loop)
            loop.call_soon(self._end_of_turn, loop)

    def urge(self, handler: Callable[[Any], None], argument: Any = None) -> None:
        """The same, not waiting for the end of a loop's turn: the poster is about to block."""
        self._posts.append((handler, argument))
        self.wake()

    def take(self) -> Iterator[Post]:
        """What was posted so far. Clears the signal first, so that a later post signals again."""
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(64)) == 64:
                pass
        self._signalled = False
        while self._posts:
            yield self._posts.popleft()

    def close(self) -> None:
        """By the sleeper, when it takes no more."""
        self._reader.close()
        self._writer.close()

    def _end_of_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns.discard(loop)
        self.wake()

    def wake(self) -> None:
        """Has the sleeper take its posts now."""
        if not self._signalled:
            self._signalled = True
            # Full: a wake-up is on its way already. Closed: nobody sleeps there any more.
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")
