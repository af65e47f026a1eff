"""Who is connected to a dispatcher: clients, and workers with their credits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from .backlog import Backlog
from .ledger import Entry
from .wire import Packet, Record

__all__ = ["Client", "Peer", "Peers", "Running", "Worker"]

# A packet is sent on once it holds so much, its frames included.
PACKET_BYTES = 1 << 20

# 0 is the process that owns the dispatcher.
_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Peer:
    """One connection. `fd` is the descriptor it came in on, as the socket's monitor
    names it when the connection ends; -1 where libzmq does not say."""

    identity: bytes
    fd: int
    number: int = field(default_factory=lambda: next(_numbers), init=False)
    packet: Packet | None = None  # what is to leave at the end of this turn


@dataclass(slots=True, eq=False)
class Client(Peer):
    """A process that calls. `calls` are those without an outcome, by its own ids."""

    backlog: Backlog = field(kw_only=True)
    calls: dict[int, Entry] = field(default_factory=dict)
    grouping: dict[int, bool] = field(default_factory=dict)  # calls that are no entries yet: if cancelled


@dataclass(slots=True)
class Running:
    """A batch that a worker has."""

    rows: int
    kill_ns: int | None  # when the worker is to be killed for it


@dataclass(slots=True, eq=False)
class Worker(Peer):
    """A process that runs batches. `token` names it to its supervisor; empty for one
    that dialled in."""

    credits: int = 1
    token: str = ""
    pid: int = 0
    hung: bool = False
    leaving: bool = False  # was told that no batch follows
    running: dict[int, Running] = field(default_factory=dict)

    @property
    def idle(self) -> int:
        return self.credits - len(self.running) if self.present else 0

    @property
    def present(self) -> bool:
        """Whether it is there to stay, as far as is known."""
        return not self.hung and not self.leaving


class Peers:
    """All connections, found by identity, by descriptor, and by who is free."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._by_identity: dict[bytes, Client | Worker] = {}
        self.workers: list[Worker] = []  # the one that was free last stands last: its caches are warm
        self._dirty: list[Client | Worker] = []

    def __iter__(self) -> itertools.chain[Client | Worker]:
        return itertools.chain(list(self._by_identity.values()))

    def get(self, identity: bytes) -> Client | Worker | None:
        return self._by_identity.get(identity)

    def add(self, peer: Client | Worker) -> None:
        self._by_identity[peer.identity] = peer
        if isinstance(peer, Worker):
            self.workers.append(peer)

    def remove(self, peer: Client | Worker) -> bool:
        """True if it was still there."""
        if self._by_identity.get(peer.identity) is not peer:
            return False
        del self._by_identity[peer.identity]
        if isinstance(peer, Worker):
            self.workers.remove(peer)
        return True

    def with_fd(self, fd: int) -> list[Client | Worker]:
        return [peer for peer in self._by_identity.values() if peer.fd == fd]

    def with_token(self, token: str) -> list[Worker]:
        """One; and whoever else says that he is it."""
        return [worker for worker in self.workers if worker.token == token]

    def slots(self) -> tuple[int, int]:
        """Batches that could be sent now, and batches that could be out at once."""
        staying = [worker for worker in self.workers if not worker.leaving]
        return sum(worker.idle for worker in staying), sum(worker.credits for worker in staying)

    def free_worker(self) -> Worker:
        """The one with most free credits; among equals the one that became free last."""
        return max(reversed(self.workers), key=lambda worker: worker.idle)

    def freed(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.workers.append(worker)

    def post(self, peer: Client | Worker, record: Record) -> list[Packet]:
        """Adds a record to what leaves for the peer at the end of this turn. Returns
        the packet that is full before it, if one is."""
        full = []
        if peer.packet is not None and (
            peer.packet.size_bytes >= PACKET_BYTES or not peer.packet.fits(record)
        ):
            full.append(peer.packet)
            peer.packet = None
        if peer.packet is None:
            peer.packet = Packet(self._max_message_bytes)
            self._dirty.append(peer)
        peer.packet.add(record)
        return full

    def waiting(self) -> bool:
        """Whether something waits for a client to read."""
        return any(isinstance(peer, Client) and peer.backlog for peer in self)

    def outgoing(self) -> list[tuple[Client | Worker, Packet]]:
        """What is to leave now; each packet is handed out once."""
        dirty, self._dirty = self._dirty, []
        out = []
        for peer in dirty:
            packet, peer.packet = peer.packet, None
            if packet is not None:
                out.append((peer, packet))
        return out
