"""Posting: what leaves for peers, one message per peer and turn.

Guarantees      1. a client gets no more at once than its backlog lets through, and is cut
                   off, counted and told when that overflows;
                2. a peer that cannot be reached is reported lost, once.
Not promised    that what was posted to a peer that is gone is missed by anybody.
"""

from __future__ import annotations

from collections.abc import Callable

from .peers import Client, Peers, Worker
from .router import Router
from .serving import Counters
from .wire import Code, Failure, Packet, Plain, Record, Rows, Type, message_bytes

__all__ = ["Posting"]


class Posting:
    """The dispatcher's thread owns it.

    Args:
        lost: called with a peer that is gone, or was cut off.
    """

    def __init__(
        self,
        router: Router,
        peers: Peers,
        counters: Counters,
        max_message_bytes: int,
        lost: Callable[[Client | Worker], None],
    ) -> None:
        self._router = router
        self._peers = peers
        self._counters = counters
        self._max_message_bytes = max_message_bytes
        self._lost = lost

    def post(self, peer: Client | Worker, record: Record) -> None:
        for packet in self._peers.post(peer, record):
            self._send(peer, packet)

    def flush(self) -> bool:
        """Sends what this turn made. True if that lost a peer: there may be more to do."""
        lost = False
        for peer, packet in self._peers.outgoing():
            lost |= not self._send(peer, packet)
        return lost

    def _send(self, peer: Client | Worker, packet: Packet) -> bool:
        if isinstance(peer, Client):
            peer.backlog.put(packet.frames())
            return self.advance(peer)
        if not self._router.send(peer.identity, packet.frames()):
            return True
        self._lost(peer)
        return False

    def advance(self, client: Client) -> bool:
        """Sends what the client may have now. False if it is gone, or cut off."""
        backlog, problem = client.backlog, ""
        while not problem:
            if ping := backlog.ask():
                problem = self.reply(client.identity, Plain(Type.PING, ping))
            elif frames := backlog.take():
                problem = self._router.send(client.identity, frames)
            else:
                break
        if not problem and not backlog.overdue:
            return True
        if problem != "gone" and self._peers.get(client.identity) is client:
            self._counters.cut_off += 1
            text = "cut off: the client did not read its answers"
            self.reply(client.identity, Failure(0, Code.UNREACHABLE, text))
        self._lost(client)
        return False

    def reply(self, identity: bytes, record: Record) -> str:
        """A message of its own, past any backlog. To somebody who is no peer: whether it
        arrives is not our concern."""
        packet = Packet()
        packet.add(record)
        return self._router.send(identity, packet.frames())

    def too_large(self, what: str, record: Rows) -> Failure | None:
        """Why the record cannot be sent; None if it can."""
        size, limit = message_bytes(record), self._max_message_bytes
        if size <= limit:
            return None
        text = f"{what} of {size} bytes is above max_message_bytes, {limit}"
        return Failure(record.id, Code.INVALID_PAYLOAD, text)
