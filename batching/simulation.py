"""Simulation: what latency, batches and goodput to expect, before anything is deployed.

What it is      `simulate` runs arrivals (a trace, or callers in a closed loop) against the cost
                of a batch, through the very scheduler that the engines run, with a clock of its own.
Guarantees      the same arguments and seed give the same outcome; what is decided is what an
                engine would decide at the same moments.
Not promised    what the driver costs: event loops, timers, sockets and the interpreter are free
                here. ``bench/bench_real_policy.py`` measures the difference.
Why this shape  400,000 calls take a few seconds, because only the cost of a batch and the think
                time of a caller are Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._native.scheduler import Scheduler
from ._native.simulate import Simulation
from .options import BatchOptions
from .statistics import PolicyStatistics, Statistics

__all__ = ["ClosedLoop", "FixedWindow", "Greedy", "Outcome", "simulate"]

_NS_PER_S = 1e9
_NS_PER_MS = 1e6
_UNBOUNDED_ROWS = 2**62

Cost: TypeAlias = Callable[[int, np.random.Generator], float]


@dataclass(frozen=True)
class ClosedLoop:
    """Callers that each call again some time after their last answer.

    Args:
        callers: how many; each makes its first call after one think time.
        think: callable (rng) -> seconds from an answer (or a refusal) to that caller's next call.
    """

    callers: int
    think: Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class Greedy:
    """Run whatever is queued as soon as a worker is free, up to ``max_batch_size``."""


@dataclass(frozen=True)
class FixedWindow:
    """Release at `size` rows, or `wait_ms` milliseconds after the oldest call.

    Both are thresholds of the release only: a free worker takes up to ``max_batch_size``.
    """

    wait_ms: float
    size: int


@dataclass(frozen=True)
class Outcome:
    """What became of the calls.

    Attributes:
        latency_s: (calls,) float64, in the order of arrival, seconds from call to answer; nan where
            the call was refused or expired.
        batch_rows: (batches,) int64, rows of each batch, in the order of their starts.
        release_reasons: how many batches were released for which reason.
        duration_s: seconds from time 0 to the last outcome.
        arrival_s: (calls,) float64, seconds, when each call was made.
        batch_start_s: (batches,) float64, seconds, when each batch was started.
        policy: what the policy had learned at the end.
        statistics: the scheduler's numbers at the end, ``recent_releases`` among them: why each of
            the last batches was let go, its predicted and its actual cost.
    """

    latency_s: NDArray[np.float64]
    batch_rows: NDArray[np.int64]
    release_reasons: dict[str, int]
    duration_s: float
    arrival_s: NDArray[np.float64]
    batch_start_s: NDArray[np.float64]
    policy: PolicyStatistics
    statistics: Statistics


def simulate(
    arrivals: ArrayLike | ClosedLoop,
    cost: Cost,
    *,
    options: BatchOptions | None = None,
    rows: int | ArrayLike = 1,
    workers: int = 1,
    requests: int | None = None,
    seed: int = 0,
    policy: Greedy | FixedWindow | None = None,
) -> Outcome:
    """Run calls against a cost, as an engine with these options would.

    Args:
        arrivals: (n,) float64, seconds, ascending, from 0 on; or a `ClosedLoop`.
        cost: callable (rows, rng) -> seconds that one batch of so many rows takes, padding included.
        options: of the engine; None: the defaults. The queue is not bounded unless they set a
            ``max_queue_rows`` other than the default, of which 65,535 is as good. ``max_latency_ms`` is
            every call's deadline.
        rows: of every call, or (n,) int of each.
        workers: separate devices, each running ``concurrency`` batches at once: one does not slow another.
        requests: calls to make in a closed loop (20,000 unless `rows` says how many); of a trace, the
            first so many.
        seed: of the random generator that `cost` and `think` are given.
        policy: None for the engine's own; `Greedy` or `FixedWindow` to compare with.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, with its value.

    >>> import numpy as np
    >>> simulate(np.array([0.0, 0.5]), lambda rows, rng: 0.001 + 0.001 * rows).latency_s
    array([0.002, 0.002])
    """
    chosen = options or BatchOptions()
    rng = np.random.default_rng(seed)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    closed = isinstance(arrivals, ClosedLoop)
    source: dict[str, Any]
    if isinstance(arrivals, ClosedLoop):
        if arrivals.callers < 1:
            raise ValueError(f"callers must be at least 1, got {arrivals.callers}")
        source = {"callers": arrivals.callers, "think": arrivals.think}
        calls = requests
    else:
        times_ns = _times_ns(arrivals)[:requests]
        source = {"arrivals_ns": times_ns}
        calls = len(times_ns)
    run = Simulation(
        scheduler := _scheduler(chosen, policy),
        slots=workers * chosen.concurrency,
        budget_ns=None if chosen.max_latency_ms is None else int(chosen.max_latency_ms * _NS_PER_MS),
        rows=_rows(rows, calls, closed=closed),
        cost=cost,
        rng=rng,
        **source,
    )
    latency_s, called_ns, batch_rows, batch_ns, end_ns = run.run()
    releases = scheduler.recent_releases()
    numbers = Statistics.from_numbers(
        {**scheduler.statistics(), "workers_ready": workers, "recent_releases": releases}
    )
    scheduler.close()
    return Outcome(
        latency_s=latency_s,
        batch_rows=np.array(batch_rows, np.int64),
        release_reasons=dict(numbers.release_reasons),
        duration_s=end_ns / _NS_PER_S,
        arrival_s=called_ns / _NS_PER_S,
        batch_start_s=np.array(batch_ns, np.float64) / _NS_PER_S,
        policy=numbers.policy,
        statistics=numbers,
    )


def _times_ns(arrivals: ArrayLike) -> NDArray[np.int64]:
    times_s = np.asarray(arrivals, np.float64)
    if times_s.ndim != 1:
        raise ValueError(f"arrivals must be one-dimensional, got shape {times_s.shape}")
    if len(times_s) and (not np.isfinite(times_s).all() or times_s[0] < 0 or (np.diff(times_s) < 0).any()):
        raise ValueError("arrivals must be finite seconds, 0 or more, ascending")
    return np.rint(times_s * _NS_PER_S).astype(np.int64)


def _rows(rows: int | ArrayLike, calls: int | None, *, closed: bool) -> NDArray[np.int64]:
    each = np.asarray(rows)
    if each.dtype.kind not in "iu" or each.ndim > 1 or (each < 0).any():
        raise ValueError(f"rows must be an int or a vector of ints, 0 or more, got {rows!r}")
    if each.ndim == 0:
        each = np.full(20_000 if calls is None else calls, each)
    if calls is not None and len(each) < calls:
        raise ValueError(f"rows must be given for each of {calls} calls, got {len(each)}")
    return np.ascontiguousarray(each[:calls], np.int64)


def _scheduler(options: BatchOptions, policy: Greedy | FixedWindow | None) -> Scheduler:
    words = options.for_scheduler()
    if words["max_queue_rows"] == BatchOptions().max_queue_rows:
        words["max_queue_rows"] = _UNBOUNDED_ROWS
    if isinstance(policy, Greedy):
        words["rule"] = "greedy"
    elif isinstance(policy, FixedWindow):
        wait_ns = int(policy.wait_ms * _NS_PER_MS)
        words.update(rule="fixed", fixed_wait_ns=wait_ns, fixed_rows=policy.size)
    elif policy is not None:
        raise TypeError(f"policy must be None, Greedy() or FixedWindow(...), got {policy!r}")
    return Scheduler(**words)


def percentiles_ms(outcome: Outcome, which: Sequence[float] = (50, 90, 99)) -> list[float]:
    """Percentiles of the answered calls' latency, in milliseconds; nan if none was answered."""
    answered = outcome.latency_s[~np.isnan(outcome.latency_s)]
    if not len(answered):
        return [float("nan")] * len(which)
    return [float(value) * 1e3 for value in np.percentile(answered, which)]
