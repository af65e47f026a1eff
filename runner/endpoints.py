"""Where a service may listen, and who may then be trusted."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import tempfile
from contextlib import suppress
from numbers import Real
from pathlib import Path

import zmq

__all__ = ["PrivateDirectory", "allows_pickle", "checked", "checked_seconds", "distrust", "set_heartbeats"]

# sun_path without its final zero, on Linux; four bytes more than macOS has.
MAX_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103

# libzmq's heartbeats, in milliseconds: how often, and how long without any message is the end. Over
# ipc a connection nearly always ends with its processes, at once; but a child of one may keep it open.
LOCAL_HEARTBEAT_MS = (10_000, 30_000)
REMOTE_HEARTBEAT_MS = (2_000, 6_000)

_TCP = re.compile(r"tcp://(?P<host>\[[^]]*\]|[^:]*):(?P<port>\d+|\*)")


def allows_pickle(endpoint: str) -> bool:
    """Whether the other end may send pickle, and so run code here.

    Over ipc: a dispatcher lets only its own user connect (mode 0600), wherever its socket
    is, and nobody follows a socket of somebody else's (see `distrust`). Over tcp never:
    anybody on this machine reaches it.
    """
    return endpoint.startswith("ipc://") and not distrust(endpoint)


def set_heartbeats(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Has libzmq end connections of which nothing was heard for long. Before the socket gets its endpoint."""
    remote = endpoint.startswith("tcp:")
    interval_ms, timeout_ms = REMOTE_HEARTBEAT_MS if remote else LOCAL_HEARTBEAT_MS
    socket.setsockopt(zmq.HEARTBEAT_IVL, interval_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)


def distrust(endpoint: str) -> str:
    """Why what listens there is not to be trusted; "" if it is this user's, root's, or not there."""
    if not endpoint.startswith("ipc://"):
        return ""
    try:
        owner = _owner(endpoint.removeprefix("ipc://"))
    except OSError:
        return ""
    if owner in (0, os.geteuid()):
        return ""
    return f"the socket {endpoint} belongs to another user (uid {owner}), who could run code here"


def _owner(path: str) -> int:
    return os.stat(path).st_uid


def checked(endpoint: str) -> str:
    """The endpoint in the form that libzmq takes.

    Raises:
        ValueError: naming the rule and the endpoint.
    """
    if endpoint.startswith("ipc://"):
        return _checked_ipc(endpoint)
    if endpoint.startswith("tcp://"):
        return _checked_tcp(endpoint)
    raise ValueError(f"an endpoint is ipc://PATH or tcp://127.0.0.1:PORT, got {endpoint!r}")


def _checked_ipc(endpoint: str) -> str:
    path = endpoint.removeprefix("ipc://")
    if not path or path[0] in "@*":
        raise ValueError(f"an ipc endpoint is a path of the file system, got {endpoint!r}")
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise ValueError(
            f"the path of an ipc endpoint has at most {MAX_PATH_BYTES} bytes, got {size}: {endpoint!r}"
        )
    return endpoint


def _checked_tcp(endpoint: str) -> str:
    match = _TCP.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"a tcp endpoint is tcp://HOST:PORT, got {endpoint!r}")
    host = match["host"].strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            f"tcp beyond loopback needs keys, which this version does not have: {endpoint!r}. "
            "Use tcp://127.0.0.1:PORT, or ipc on one machine"
        )
    return f"tcp://[{host}]:{match['port']}" if ":" in host else f"tcp://{host}:{match['port']}"


def checked_seconds(name: str, value: object) -> float:
    """Raises TypeError or ValueError, naming the argument and its value."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    seconds = float(value)
    if not seconds > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return seconds


class PrivateDirectory:
    """A directory that only this user can enter, with room for a socket."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="batching-"))  # 0700
        if len(os.fsencode(self.endpoint.removeprefix("ipc://"))) > MAX_PATH_BYTES:
            self.path.rmdir()
            self.path = Path(tempfile.mkdtemp(prefix="batching-", dir="/tmp"))

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.path}/socket"

    def remove(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self.path)
