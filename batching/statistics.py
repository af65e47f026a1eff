"""`Statistics`: what an engine has done, and what its policy has learned, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["PolicyStatistics", "Release", "Statistics"]

_NS_PER_MS = 1e6
_NS_PER_S = 1e9


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
        held: batches that were held open before their release.
        held_ms: for how long, in all.
    """

    calibrated: bool
    cost_base_ms: float
    cost_row_ms: float
    arrival_rate_hz: float
    return_fraction: float
    return_median_ms: float
    held: int
    held_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One batch that was handed to a worker: why just then, and what it cost.

    Attributes:
        number: of the batch, counted from 1; re-runs have numbers of their own.
        released_s: when, in seconds on the engine's clock: ``time.monotonic()`` of its process, the
            dispatcher's for a service; the simulated time in a simulation.
        reason: one of `Statistics.release_reasons`.
        calls: calls with rows in it.
        rows: rows in it.
        padded_rows: rows that the model was given, with ``allowed_batch_sizes``.
        idle_workers: places for a batch that were free at that moment, its own among them.
        held_ms: how long it had been held open with a worker free; 0 if it was not.
        predicted_cost_ms: what it was predicted to take; None before anything was measured.
        actual_cost_ms: what it took, or took until it failed; None while it runs.
        outcome: running, ok, raised, died (its worker), invalid (its result was unusable), or unrun
            (its worker gave it back).
    """

    number: int
    released_s: float
    reason: str
    calls: int
    rows: int
    padded_rows: int
    idle_workers: int
    held_ms: float
    predicted_cost_ms: float | None
    actual_cost_ms: float | None
    outcome: str

    @classmethod
    def from_numbers(cls, numbers: Sequence[Any]) -> Release:
        """From a scheduler's entry, in the order of its fields."""
        number, released_ns, reason, calls, rows, padded, idle, held_ns, predicted_ns, took_ns, how = numbers
        return cls(
            number=number,
            released_s=released_ns / _NS_PER_S,
            reason=reason,
            calls=calls,
            rows=rows,
            padded_rows=padded,
            idle_workers=idle,
            held_ms=held_ns / _NS_PER_MS,
            predicted_cost_ms=None if predicted_ns is None else predicted_ns / _NS_PER_MS,
            actual_cost_ms=None if took_ns is None else took_ns / _NS_PER_MS,
            outcome=how,
        )


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
        predicted_cost_ms: by the same reasons: the predicted costs of the batches that ended well
            and had a prediction, summed up.
        actual_cost_ms: what the same batches took.
        recent_releases: the last 256 batches one by one, oldest first.
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
    predicted_cost_ms: Mapping[str, float]
    actual_cost_ms: Mapping[str, float]
    recent_releases: tuple[Release, ...]
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
        values["predicted_cost_ms"] = _in_ms(numbers["predicted_ns"])
        values["actual_cost_ms"] = _in_ms(numbers["actual_ns"])
        values["recent_releases"] = tuple(map(Release.from_numbers, numbers["recent_releases"]))
        values["policy"] = PolicyStatistics(
            **{field.name: _learned(field.name, numbers["policy"]) for field in fields(PolicyStatistics)}
        )
        return cls(**values)


def _in_ms(by_reason: Mapping[str, int]) -> dict[str, float]:
    return {reason: ns / _NS_PER_MS for reason, ns in by_reason.items()}


def _learned(name: str, numbers: Mapping[str, Any]) -> Any:
    """One field of `PolicyStatistics`; the scheduler says in ns what is milliseconds here."""
    if name.endswith("_ms"):
        return numbers[f"{name.removesuffix('_ms')}_ns"] / _NS_PER_MS
    return bool(numbers[name]) if name == "calibrated" else numbers[name]
