"""Router: the dispatcher's socket, and word of connections that ended."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

import zmq
from zmq.utils.monitor import recv_monitor_message

from .endpoints import set_heartbeats
from .records import Bytes

__all__ = ["Router", "source_fd"]

# Messages to one peer that may wait in libzmq: more than a client's backlog lets through
# and than a worker has credits. Only who never reads what it has asked for in other ways
# comes to it, and gets no more.
_SEND_HIGH_WATER = 20_000
# Messages from one peer that may wait before its own socket stops taking more: the
# queue's bound, max_queue_rows, answers calls that come faster than they are served.
_RECEIVE_HIGH_WATER = 10_000
# Messages taken in one turn before what they ask for is done.
_MESSAGES_A_TURN = 1_000
_LINGER_MS = 500
_PROBE_S = 1.0
# Connections that may wait to be taken.
_BACKLOG = 128


class Router:
    """A ROUTER socket that says when a message cannot be sent. Not thread-safe."""

    def __init__(self, max_message_bytes: int) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        # A message to a peer that is gone or full is an error here, never dropped silently.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_HIGH_WATER)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        # Of one frame, before there is memory for it: libzmq ends the connection. Whole messages
        # are looked at by whoever reads them.
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._file: _File | None = None

    def bind(self, endpoint: str) -> str:
        """Listens; returns the endpoint with its real port. Raises OSError if another does there."""
        if endpoint.startswith("ipc:"):
            self._file = _File(endpoint.removeprefix("ipc://"))
            self._socket.setsockopt(zmq.USE_FD, self._file.detach())
        else:
            self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        set_heartbeats(self._socket, endpoint)
        self._socket.bind(endpoint)
        self._socket.setsockopt(zmq.USE_FD, -1)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """The ROUTER and its monitor, for a native thread that takes this object's place."""
        return self._socket, self._monitor

    def register(self, poller: zmq.Poller) -> None:
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def messages(self) -> Iterator[tuple[bytes, list[zmq.Frame]]]:
        """The messages that are here, up to a turn's worth: who sent it, and its frames."""
        for _ in range(_MESSAGES_A_TURN):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield identity.bytes, frames

    def ended(self) -> Iterator[int]:
        """The descriptors of connections that ended."""
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            yield int(event["value"])

    def send(self, identity: bytes, frames: Sequence[Bytes]) -> str:
        """ "" if it is on its way; else why not: "full" or "gone"."""
        try:
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return "full"
        except zmq.ZMQError:  # EHOSTUNREACH
            return "gone"
        return ""

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
        if self._file is not None:
            self._file.remove()


class _File:
    """A socket in the file system that nobody but its owner can ever connect to.

    Whoever can connect may send pickle, and libzmq listens as soon as the file is there, with
    the rights that the umask leaves. So the file gets its rights first, and listens then.
    Raises OSError if another process listens there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            _check_free(path)
            self._socket.bind(path)
            os.chmod(path, 0o600)
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
            self._is = os.lstat(path)
        except BaseException:
            self._socket.close()
            raise

    def detach(self) -> int:
        """The descriptor: the caller's from now on."""
        return self._socket.detach()

    def remove(self) -> None:
        """The file, unless it is another's by now."""
        with suppress(OSError):
            if os.path.samestat(os.lstat(self._path), self._is):
                os.unlink(self._path)


def _check_free(path: str) -> None:
    """Removes a socket that was left behind, and nothing else."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except TimeoutError:  # busy, but there
            pass
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            return
        except OSError:  # nobody there
            return
    raise OSError(errno.EADDRINUSE, "another process listens there", path)


def source_fd(frames: list[zmq.Frame]) -> int:
    """The descriptor that a message came in on, as `ended` names it; -1 if libzmq does not say."""
    try:
        return int(frames[0].get(zmq.SRCFD))
    except (IndexError, zmq.ZMQError, AttributeError, ValueError):
        return -1
