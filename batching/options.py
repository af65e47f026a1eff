"""`BatchOptions`: everything that can be set, validated at once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

__all__ = ["BatchOptions"]

_NS_PER_MS = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """What a runner may be told; nothing has to be.

    ``docs/tuning.md`` has a section on each: how to choose it, and which
    statistic to look at. Immutable; ``dataclasses.replace`` makes a changed copy.

    Args:
        max_batch_size: rows in one batch at most.
        max_latency_ms: milliseconds from call to answer that a call may take;
            None: no budget. ``deadline_ms=`` in a call replaces it for that call.
        max_wait_ms: milliseconds that a batch is held open at most; None: the
            policy decides.
        max_queue_rows: rows that may wait; beyond it calls are refused.
        objective: "latency" answers as early as it can, "throughput" uses the
            whole budget to fill batches.
        concurrency: batches in flight in one worker.
        allowed_batch_sizes: rows that a batch may have, ascending; the last is
            ``max_batch_size``. Smaller batches are padded with their last row.
        static_args: names of arguments of ``_run_batch`` that are not batched.
        execution: "thread", or "inline": on the thread that makes the batch due.
        isolate_errors: run the calls of a failed batch again to find the guilty
            ones. False: every row is run at most once.
        run_timeout_ms: milliseconds after which a worker process that is still
            running its batch is killed; None: never.

    Raises:
        TypeError: an unknown name, or a value of the wrong type.
        ValueError: a value out of range, or options that exclude each other.

    >>> BatchOptions(max_batch_size=64).max_batch_size
    64
    >>> BatchOptions(max_batch_size=0)
    Traceback (most recent call last):
        ...
    ValueError: max_batch_size must be at least 1, got 0
    """

    max_batch_size: int = 128
    max_latency_ms: float | None = None
    max_wait_ms: float | None = None
    max_queue_rows: int = 65_536
    objective: Literal["latency", "throughput"] = "latency"
    concurrency: int = 1
    allowed_batch_sizes: Sequence[int] | None = None
    static_args: Sequence[str] = ()
    execution: Literal["thread", "inline"] = "thread"
    isolate_errors: bool = True
    run_timeout_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_queue_rows", "concurrency"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        for name, zero_allowed in (
            ("max_latency_ms", False),
            ("max_wait_ms", True),
            ("run_timeout_ms", False),
        ):
            object.__setattr__(self, name, _checked_ms(name, getattr(self, name), zero_allowed=zero_allowed))
        _check_choice("objective", self.objective, ("latency", "throughput"))
        _check_choice("execution", self.execution, ("thread", "inline"))
        if not isinstance(self.isolate_errors, bool):
            raise TypeError(f"isolate_errors must be True or False, got {self.isolate_errors!r}")
        object.__setattr__(self, "static_args", _names("static_args", self.static_args))
        object.__setattr__(self, "allowed_batch_sizes", self._sizes())
        if self.max_queue_rows < self.max_batch_size:
            raise ValueError(
                f"max_queue_rows ({self.max_queue_rows}) is below max_batch_size "
                f"({self.max_batch_size}): no batch could ever be full"
            )

    def for_scheduler(self) -> dict[str, Any]:
        """The native scheduler's own words for the options: rows and nanoseconds."""
        return {
            "max_batch_rows": self.max_batch_size,
            "max_queue_rows": self.max_queue_rows,
            "isolate_errors": self.isolate_errors,
            "objective": self.objective,
            "max_wait_ns": None if self.max_wait_ms is None else int(self.max_wait_ms * _NS_PER_MS),
            "allowed_rows": tuple(self.allowed_batch_sizes or ()),
        }

    def _sizes(self) -> tuple[int, ...] | None:
        if self.allowed_batch_sizes is None:
            return None
        if isinstance(self.allowed_batch_sizes, (str, bytes)):
            raise TypeError(f"allowed_batch_sizes must be a list of ints, got {self.allowed_batch_sizes!r}")
        sizes = tuple(_positive_int("allowed_batch_sizes", size) for size in self.allowed_batch_sizes)
        if not sizes or len(sizes) > 64:
            raise ValueError(f"allowed_batch_sizes must name 1 to 64 sizes, got {len(sizes)}")
        if any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"allowed_batch_sizes must be ascending without repeats, got {sizes}")
        if sizes[-1] != self.max_batch_size:
            raise ValueError(
                f"the last of allowed_batch_sizes must be max_batch_size ({self.max_batch_size}), "
                f"got {sizes[-1]}"
            )
        return sizes


def _positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    if number > 2**31 - 1:
        raise ValueError(f"{name} must be at most {2**31 - 1}, got {number}")
    return number


def _checked_ms(name: str, value: object, *, zero_allowed: bool) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number of milliseconds or None, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        least = "at least 0" if zero_allowed else "above 0"
        raise ValueError(f"{name} must be finite and {least}, got {value!r}")
    return value if isinstance(value, (int, float)) else float(value)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of argument names, got {value!r}")
    names = tuple(value)
    for item in names:
        if not isinstance(item, str) or not item.isidentifier():
            raise TypeError(f"{name} must hold argument names, got {item!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"{name} names an argument twice: {names}")
    return names
