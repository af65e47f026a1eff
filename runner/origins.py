"""RemoteOrigin: a call of a client, whose outcome leaves as a record."""

from __future__ import annotations

import dataclasses

from .buffers import join
from .ledger import Part
from .peers import Client
from .posting import Posting
from .wire import Code, Failure, Rows, Type

__all__ = ["RemoteOrigin"]

# Of a key in an error's text.
_SHOWN_KEY_BYTES = 200


class RemoteOrigin:
    """An `Origin`."""

    __slots__ = ("_client", "_id", "_posting", "client")

    def __init__(self, posting: Posting, client: Client, id_: int) -> None:
        self._posting = posting
        self._client = client
        self._id = id_
        self.client = client.number

    def answer(self, parts: list[Part]) -> None:
        if self._client.calls.pop(self._id, None) is None:
            return
        for part in parts:
            if part.key != parts[0].key:
                # As text: what they are.
                keys = [
                    bytes(key[:_SHOWN_KEY_BYTES]).decode(errors="replace") for key in (parts[0].key, part.key)
                ]
                text = "the parts of one call differ: " + " and ".join(keys)
                self._posting.post(self._client, Failure(self._id, Code.BAD_RESULT, text))
                return
        rows = sum(part.rows for part in parts)
        buffers = join([part.buffers for part in parts])
        record = Rows(Type.ANSWER, self._id, rows, parts[0].key, buffers)
        self._posting.post(self._client, self._posting.too_large("an answer", record) or record)

    def fail(self, failure: Failure) -> None:
        if self._client.calls.pop(self._id, None) is not None:
            self._posting.post(self._client, dataclasses.replace(failure, id=self._id))
