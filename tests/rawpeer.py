"""A client or worker that speaks the protocol by hand."""

from __future__ import annotations

import zmq
from fakes import PATIENCE_S

from batching.runner.recipe import described
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


class RawDispatcher:
    """A ROUTER that speaks for a dispatcher, by hand. One peer."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._identity = b""
        self._records = []

    def hear(self):
        """The next record."""
        while not self._records:
            assert self._socket.poll(PATIENCE_S * 1000)
            self._identity, *frames = self._socket.recv_multipart()
            self._records = parse(frames)
        return self._records.pop(0)

    def say(self, *records) -> None:
        packet = Packet()
        for record in records:
            packet.add(record)
        self._socket.send_multipart([self._identity, *packet.frames()])

    def welcome(self, runner, options) -> None:
        assert self.hear().type == Type.HELLO
        self.say(Greeting(Type.WELCOME, Role.DISPATCHER, runner.name, described(runner, options)))

    def __enter__(self) -> RawDispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
