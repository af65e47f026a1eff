"""The one warning about a budget: that not even a batch of one row can keep it."""

from __future__ import annotations

import warnings

from batching.statistics import Statistics

__all__ = ["warn_if_below_one_row"]


def warn_if_below_one_row(name: str, numbers: Statistics, max_latency_ms: float) -> bool:
    """Warns if one row alone costs more than the budget; says whether it did.

    Args:
        numbers: of the engine that runs the batches; nothing is said before it is calibrated.
    """
    learned = numbers.policy
    one_row_ms = learned.cost_base_ms + learned.cost_row_ms
    if not learned.calibrated or one_row_ms <= max_latency_ms:
        return False
    warnings.warn(
        f"runner {name!r}: a batch of one row takes {one_row_ms:.3g} ms, which is more than max_latency_ms, "
        f"{max_latency_ms:g}: no call can be answered in time",
        RuntimeWarning,
        stacklevel=4,
    )
    return True
