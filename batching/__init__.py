"""Adaptive micro-batching: many concurrent calls in, few batched calls out."""

from __future__ import annotations

import importlib
from typing import Any

# name: the module that defines it. Imported at first use, so that `import batching`
# stays cheap and the floors below never import the ones above.
_HOME = {
    "BatchOptions": "batching.options",
    "BatchingError": "batching.errors",
    "DeadlineExceeded": "batching.errors",
    "InvalidPayload": "batching.errors",
    "Overloaded": "batching.errors",
    "Runner": "batching.runner",
    "RunnerClosed": "batching.errors",
    "RunnerError": "batching.errors",
    "ServiceUnreachable": "batching.errors",
    "SimpleRunner": "batching.runner",
    "WorkerDied": "batching.errors",
    "connect": "batching.runner",
    "runner_service": "batching.runner",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
