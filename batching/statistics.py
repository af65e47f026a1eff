"""`Statistics`: what an engine has done, and what its policy has learned, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["PolicyStatistics", "Statistics"]

_NS_PER_MS = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStatistics:
    """What was learned from the traffic and the cost of the batches.

    Attributes:
        calibrated: batches of two sizes have been seen; nothing is refused before.
        cost_base_ms: what a batch costs whatever its size, in milliseconds.
        cost_row_ms: what each row adds.
        arrival_rate_hz: rows a second, recently.
        return_fraction: of the callers of a batch, how many call again soon.
        return_median_ms: after how long, in milliseconds.
        predicted_cost_ms: sum of the predicted costs of all finished batches.
        actual_cost_ms: sum of what they took; about the same if the prediction is right.
        held: batches that were held open before their release.
        held_ms: for how long, in all.
    """

    calibrated: bool
    cost_base_ms: float
    cost_row_ms: float
    arrival_rate_hz: float
    return_fraction: float
    return_median_ms: float
    predicted_cost_ms: float
    actual_cost_ms: float
    held: int
    held_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """One engine's numbers at one moment; counts are since its start.

    ``calls == answered + failed + refused + expired + cancelled`` plus the calls that
    are queued or running.

    Attributes:
        queued_calls: calls with rows that wait.
        queued_rows: rows that wait.
        in_flight_batches: batches that run.
        calls: calls made.
        answered: calls that got their rows.
        failed: calls that got an error of the runner or its worker.
        refused: calls that were not let in (`Overloaded`, too large).
        expired: calls whose deadline passed.
        cancelled: calls that their callers gave up.
        batches: batches that were run, re-runs included.
        batch_rows: batches by size: element i counts those of 2**(i-1) < rows <= 2**i.
        release_reasons: batches by why they were released: full, worker_free,
            everyone_here, hold_expired, budget, cap, rerun.
        groups: distinct keys seen: calls of different keys are never joined, and a key
            that changes with every call ends batching.
        workers_ready: workers whose ``_setup`` is done.
        clients_cut_off: connections that were given up because they did not read their answers.
        messages_dropped: messages and records of peers that broke the protocol or came too late.
        policy: what was learned.
    """

    queued_calls: int
    queued_rows: int
    in_flight_batches: int
    calls: int
    answered: int
    failed: int
    refused: int
    expired: int
    cancelled: int
    batches: int
    batch_rows: tuple[int, ...]
    release_reasons: Mapping[str, int]
    groups: int
    workers_ready: int
    clients_cut_off: int = 0
    messages_dropped: int = 0
    policy: PolicyStatistics

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Statistics:
        """From a scheduler's numbers, with what its driver counts beside them."""
        values = {field.name: numbers[field.name] for field in fields(cls) if field.name in numbers}
        values["batch_rows"] = tuple(numbers["batch_rows"])
        values["release_reasons"] = numbers["released"]
        values["policy"] = PolicyStatistics(
            **{field.name: _learned(field.name, numbers["policy"]) for field in fields(PolicyStatistics)}
        )
        return cls(**values)


def _learned(name: str, numbers: Mapping[str, Any]) -> Any:
    """One field of `PolicyStatistics`; the scheduler says in ns what is milliseconds here."""
    if name.endswith("_ms"):
        return numbers[f"{name.removesuffix('_ms')}_ns"] / _NS_PER_MS
    return bool(numbers[name]) if name == "calibrated" else numbers[name]
