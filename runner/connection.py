"""Connection: one DEALER socket to a dispatcher, and word of its end.

Guarantees      1. a connection is used for one handshake and its calls: when it ends, it
                   is over, and whoever wants another makes another;
                2. `lost` is true as soon as the peer is gone; after some heartbeats also if it went without
                   a word: over tcp, or while a child of its process keeps a local socket open.
Not promised    thread safety: the thread of its link owns it.
Why this shape  libzmq reconnects by itself and would send what was queued before to
                whoever listens then; a request is never sent again, so a socket ends with
                its connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import zmq
from zmq.utils.monitor import recv_monitor_message

from .endpoints import set_heartbeats
from .wire import MAX_MESSAGE_BYTES, BadPacket, Packet, Record, parse

__all__ = ["Connection"]

# Nothing may wait unbounded but what callers wait for: a client's calls are bounded by
# its callers, and what comes back by its calls. So neither side is bounded here.
_HIGH_WATER = 0
_LINGER_MS = 500
_RECONNECT_MS = 50
_LONGEST_RECONNECT_MS = 2_000


class Connection:
    """Raises ZMQError at once for an endpoint that is none, or when descriptors are short.

    Args:
        patient: nobody may listen there for long: tries grow rarer, down to one in two seconds.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, patient: bool = False
    ) -> None:
        self.broken: list[BadPacket] = []  # what came and broke a rule
        self.lost = False
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = context.socket(zmq.DEALER)
        try:
            self._connect(endpoint, patient)
        except BaseException:
            self.close()
            raise

    def _connect(self, endpoint: str, patient: bool) -> None:
        socket = self._socket
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, 2**31)
        # While nobody listens yet. Once connected, the first loss is the end.
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        if patient:
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
        set_heartbeats(socket, endpoint)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(endpoint)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """The DEALER and its monitor, for native code that takes this object's place."""
        assert self._monitor is not None
        return self._socket, self._monitor

    def register(self, poller: zmq.Poller) -> None:
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def unregister(self, poller: zmq.Poller) -> None:
        poller.unregister(self._socket)
        poller.unregister(self._monitor)

    def send(self, records: list[Record], max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        packet = Packet(max_message_bytes)
        for record in records:
            if not packet.fits(record):
                self.send_frames(packet)
                packet = Packet(max_message_bytes)
            packet.add(record)
        self.send_frames(packet)

    def send_frames(self, packet: Packet) -> None:
        self._socket.send_multipart(packet.frames(), zmq.NOBLOCK, copy=False)

    def messages(self) -> Iterator[list[Record]]:
        """The records of each message that is here, then `lost` if the peer is gone."""
        while not self._socket.closed:  # as it is once the peer's BYE was obeyed
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            try:
                yield parse([frame.buffer for frame in frames])
            except BadPacket as error:
                self.broken.append(error)
        if self._socket.closed:
            return
        with suppress(zmq.Again):
            recv_monitor_message(self.sockets[1], zmq.NOBLOCK)
            self.lost = True

    def close(self) -> None:
        self._socket.disable_monitor()
        if self._monitor is not None:
            self._monitor.close()
        self._socket.close()
