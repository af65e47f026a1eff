"""A man in the middle between a dispatcher and its peers: passes, drops, repeats or holds messages."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

import zmq
from fakes import PATIENCE_S

PASS, DROP, TWICE, HOLD = "pass", "drop", "twice", "hold"


class Proxy:
    """`up` and `down` say what happens to messages towards the dispatcher and from it. Messages
    from it may be held: `release` passes them on, in their order."""

    def __init__(self, folder: Path, target: str) -> None:
        self.endpoint = f"ipc://{folder}/proxy"
        self.up = self.down = PASS
        self._target = target
        self._context = zmq.Context()
        self._wake = self._context.socket(zmq.PAIR)
        self._wake.bind("inproc://wake")
        self._open = True
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._listening.wait(PATIENCE_S)

    def release(self) -> None:
        self.down = PASS
        self._wake.send(b"release")

    def cut(self) -> None:
        """Ends every connection, and refuses new ones."""
        if self._open:
            self._open = False
            self._wake.send(b"")
            self._thread.join(PATIENCE_S)
            self._wake.close()
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def _serve(self) -> None:
        wake = self._context.socket(zmq.PAIR)
        wake.connect("inproc://wake")
        front = self._context.socket(zmq.ROUTER)
        front.bind(self.endpoint)
        self._listening.set()
        backs: dict[bytes, zmq.Socket[bytes]] = {}
        held: list[list[bytes]] = []
        poller = zmq.Poller()
        for socket in (wake, front):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if wake in ready:
                if not wake.recv():
                    break
                for message in held:
                    front.send_multipart(message)
                held.clear()
            if front in ready:
                identity, *frames = front.recv_multipart()
                if identity not in backs:
                    backs[identity] = back = self._context.socket(zmq.DEALER)
                    back.connect(self._target)
                    poller.register(back, zmq.POLLIN)
                for _ in range(times(self.up)):
                    backs[identity].send_multipart(frames)
            for identity, back in backs.items():
                if back in ready:
                    frames = back.recv_multipart()
                    if self.down == HOLD:
                        held.append([identity, *frames])
                        continue
                    for _ in range(times(self.down)):
                        front.send_multipart([identity, *frames])
        for socket in (wake, front, *backs.values()):
            socket.close(linger=0)


def times(mode: str) -> int:
    return {PASS: 1, DROP: 0, TWICE: 2}[mode]
