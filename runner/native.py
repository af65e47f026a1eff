"""What the classes of the native data plane share, and whether they can be used.

What it is      `NativeDispatcher`, `NativeLink` and `NativeWorkerLink` do what `Dispatcher`, `Link`
                and `WorkerLink` do, with everything that happens once per request in C.
                `native_plane()` says whether they can be used.
Guarantees      those of the plain classes, which remain the fallback where pyzmq comes without
                libzmq's symbols; the same tests run over both.
Why this shape  Python makes and configures the sockets, and hears of workers, handshakes and ends,
                which are few. `BATCHING_DATA_PLANE=plain` or `native` chooses by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import BatchingError
from .connection import Connection
from .failures import error_of
from .wire import Failure, Packet, Record

try:
    from .._native import batches, link, pipe, plane
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

__all__ = ["batches", "error_maker", "link", "native_plane", "packed", "pipe", "plane", "socket_of"]


def native_plane() -> bool:
    """Whether the native data plane is to be used in this process.

    Raises:
        ImportError: it was asked for by BATCHING_DATA_PLANE=native and cannot be had.
        ValueError: BATCHING_DATA_PLANE is something else than native, plain or empty.
    """
    wanted = os.environ.get("BATCHING_DATA_PLANE", "")
    if wanted not in ("", "native", "plain"):
        raise ValueError(f"BATCHING_DATA_PLANE must be native or plain, got {wanted!r}")
    if wanted == "native" and _missing is not None:
        raise _missing
    return wanted != "plain" and _missing is None


def socket_of(connection: Connection) -> link.LinkSocket:
    """Takes the connection over, also when this raises OSError."""
    try:
        return link.LinkSocket(*connection.sockets)
    except BaseException:
        connection.close()
        raise


def packed(record: Record) -> list[Any]:
    packet = Packet()
    packet.add(record)
    return packet.frames()


def error_maker(allow_pickle: bool) -> Callable[..., BatchingError]:
    def make(
        code: int, exit_code: int, number: int, message: str, type_name: str, traceback: str, cause: bytes
    ) -> BatchingError:
        failure = Failure(0, code, message, type_name, traceback, cause, exit_code, number)
        return error_of(failure, allow_pickle=allow_pickle)

    return make
