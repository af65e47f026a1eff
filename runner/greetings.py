"""Greetings: who a HELLO lets in, and what a newcomer is taken for."""

from __future__ import annotations

import json

from .backlog import Backlog
from .peers import Client, Worker
from .wire import VERSION, Greeting, Role

__all__ = ["newcomer", "objection"]

# Limits on what peers may claim of themselves.
_MOST_CREDITS = 1_024
_MOST_TOKEN_BYTES = 63


def objection(hello: Greeting, name: str, *, is_open: bool) -> str:
    """Why the runner `name` is not served to who greets so; "" if it is."""
    if not hello.lowest <= VERSION <= hello.highest:
        asked = f"{hello.lowest} to {hello.highest}"
        return f"protocol versions {asked} are asked for, and {VERSION} is spoken here"
    if hello.name != name:
        return f"no runner {hello.name!r} here, only {name!r}"
    if hello.role == Role.CLIENT and not is_open:  # workers may be needed to get done
        return f"the service of {name!r} is closing"
    if hello.role == Role.DISPATCHER:
        return "only clients and workers say HELLO"
    return ""


def newcomer(identity: bytes, fd: int, hello: Greeting, max_unread_bytes: int) -> Client | Worker:
    if hello.role == Role.CLIENT:
        return Client(identity, fd, backlog=Backlog(max_unread_bytes))
    credit = min(max(hello.credits, 1), _MOST_CREDITS)
    return Worker(identity, fd, credits=credit, token=_token(hello), pid=hello.pid)


def _token(hello: Greeting) -> str:
    """What the worker's supervisor calls it; empty if it has none."""
    try:
        token = json.loads(hello.description or b"{}").get("token", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    fits = isinstance(token, str) and len(token.encode(errors="replace")) <= _MOST_TOKEN_BYTES
    return token if fits else ""
