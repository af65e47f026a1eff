"""Backlog: what a client was sent and has not read, and what waits until it has.

What it is      bytes and PINGs of one client. A PONG says that everything before its PING was
                read; so no more is under way than a window, whatever libzmq and the kernel hold.
Guarantees      1. what is under way is at most the window, or one message;
                2. `overdue` before the whole, the first waiting message not counted, is above the limit;
                3. while something waits, a PING is out.
Not promised    that a client that reads and says no PONG is told from one that does not read.
Why this shape  no socket here: whoever owns it asks what may leave now.
"""

from __future__ import annotations

import secrets
from collections import deque

from .records import Bytes

__all__ = ["MAX_UNREAD_BYTES", "Backlog"]

# Of the answers for one client, on their way or waiting. Then it is cut off.
MAX_UNREAD_BYTES = 512 << 20

# What a message costs that is not in its frames.
_OVERHEAD_BYTES = 4_096

Frames = list[Bytes]


class Backlog:
    """Not thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._window_bytes = limit_bytes // 8
        self._most_waiting_bytes = limit_bytes - self._window_bytes
        self._waiting: deque[tuple[Frames, int]] = deque()
        self._waiting_bytes = 0
        self._sent_bytes = 0
        self._read_bytes = 0
        self._ping = 0
        self._ping_bytes = 0  # what was sent before it

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    @property
    def overdue(self) -> bool:
        """The client does not read, or far too slowly."""
        # The first is let be whatever its size: an answer cannot be smaller.
        return bool(self._waiting) and self._waiting_bytes - self._waiting[0][1] > self._most_waiting_bytes

    def put(self, frames: Frames) -> None:
        if self._unread_bytes > self._window_bytes // 4:
            # What waits must not keep whole results of others alive.
            frames = [bytes(frame) for frame in frames]
        size = sum(len(frame) for frame in frames) + _OVERHEAD_BYTES
        self._waiting.append((frames, size))
        self._waiting_bytes += size

    def take(self) -> Frames | None:
        """The next message that may leave now: the caller sends it."""
        if not self._waiting:
            return None
        frames, size = self._waiting[0]
        if self._unread_bytes > self._window_bytes // 2 and self._unread_bytes + size > self._window_bytes:
            return None
        self._waiting.popleft()
        self._waiting_bytes -= size
        self._sent_bytes += size
        return frames

    def ask(self) -> int:
        """The id of a PING that is to leave now; 0: none."""
        if self._ping or self._unread_bytes < self._window_bytes // 4:
            return 0
        # Nobody can answer it but who has read it.
        self._ping = secrets.randbits(63) + 1
        self._ping_bytes = self._sent_bytes
        return self._ping

    def pong(self, id_: int) -> None:
        if id_ and id_ == self._ping:
            self._ping = 0
            self._read_bytes = self._ping_bytes

    @property
    def _unread_bytes(self) -> int:
        return self._sent_bytes - self._read_bytes
