"""The one warning about a budget: that not even a batch of one row can keep it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

from .errors import BatchingError
from .statistics import Statistics

__all__ = ["BudgetLookout", "warn_if_below_one_row"]


def warn_if_below_one_row(
    name: str, numbers: Statistics, max_latency_ms: float, *, stacklevel: int = 4
) -> bool:
    """Warns if one row alone costs more than the budget; says whether it did.

    Args:
        name: the runner's.
        numbers: of the engine that runs the batches; nothing is said before it is calibrated.
        max_latency_ms: the budget.
        stacklevel: as of `warnings.warn`, counted from here.
    """
    learned = numbers.policy
    one_row_ms = learned.cost_base_ms + learned.cost_row_ms
    if not learned.calibrated or one_row_ms <= max_latency_ms:
        return False
    warnings.warn(
        f"runner {name!r}: a batch of one row takes {one_row_ms:.3g} ms, which is more than max_latency_ms, "
        f"{max_latency_ms:g}: no call can be answered in time",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
    return True


class BudgetLookout:
    """Warns at most once, from a thread of its own: the numbers are another's, who has to be asked.

    Whoever would wait for the answer runs callers or batches, and must not. Any thread.
    """

    def __init__(self, name: str, ask: Callable[[], Statistics]) -> None:
        self._name = name
        self._ask = ask
        self._lock = threading.Lock()  # held while somebody looks
        self._warned = False

    def look(self, max_latency_ms: float) -> bool:
        """Begins to look, unless a look is under way; whether there is nothing more to look for."""
        if self._warned:
            return True
        if self._lock.acquire(blocking=False):
            name = f"batching-{self._name}-budget"
            threading.Thread(target=self._look, args=(max_latency_ms,), name=name, daemon=True).start()
        return False

    def _look(self, max_latency_ms: float) -> None:
        try:
            with suppress(BatchingError):  # nobody there to ask: then nobody runs batches either
                numbers = self._ask()
                self._warned = True  # also when warnings are errors
                self._warned = warn_if_below_one_row(self._name, numbers, max_latency_ms, stacklevel=2)
        finally:
            self._lock.release()
