"""Runners: in this process, in worker processes, and over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Runner, SimpleRunner

if TYPE_CHECKING:
    from .client import connect
    from .service import runner_service

__all__ = ["Runner", "SimpleRunner", "connect", "runner_service"]


def __getattr__(name: str) -> Any:
    # Sockets and pickling are loaded only by those who use processes.
    if name == "connect":
        from .client import connect

        return connect
    if name == "runner_service":
        from .service import runner_service

        return runner_service
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
