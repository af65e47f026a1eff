"""A client or worker that speaks the protocol by hand."""

from __future__ import annotations

import zmq
from fakes import PATIENCE_S

from batching.runner.wire import Greeting, Packet, Role, Type, parse


class RawPeer:
    """A DEALER that says what it likes."""

    def __init__(self, endpoint: str, receive_high_water: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, receive_high_water)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def say(self, *records) -> None:
        packet = Packet()
        for record in records:
            packet.add(record)
        self._socket.send_multipart(packet.frames())

    def hear(self):
        assert self._socket.poll(PATIENCE_S * 1000)
        return parse(self._socket.recv_multipart())

    def greet(self, name: str, role: int = Role.CLIENT, **fields) -> None:
        self.say(Greeting(Type.HELLO, role, name, **fields))
        (welcome,) = self.hear()
        assert welcome.type == Type.WELCOME

    def close(self) -> None:
        self._socket.close()
        self._context.term()
