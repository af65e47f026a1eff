"""`BatchOptions`: every rule refuses at once, and says the rule and the value."""

from __future__ import annotations

import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest

from batching import BatchOptions


def refused(error: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        BatchOptions(**options)


def test_nothing_has_to_be_set() -> None:
    options = BatchOptions()
    assert dataclasses.asdict(options) == {
        "max_batch_size": 128,
        "max_latency_ms": None,
        "max_wait_ms": None,
        "max_queue_rows": 65_536,
        "objective": "latency",
        "concurrency": 1,
        "allowed_batch_sizes": None,
        "static_args": (),
        "execution": "thread",
        "isolate_errors": True,
        "run_timeout_ms": None,
    }


@pytest.mark.parametrize("name", ["max_batch_size", "max_queue_rows", "concurrency"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    refused(ValueError, f"{name} must be at least 1, got {value}", **{name: value})


@pytest.mark.parametrize("name", ["max_batch_size", "max_queue_rows", "concurrency"])
@pytest.mark.parametrize("value", [1.1, 2.0, "a", None, True, float("inf")])
def test_counts_that_are_no_ints_are_refused(name: str, value: object) -> None:
    refused(TypeError, f"{name} must be an int, got {value!r}", **{name: value})


@pytest.mark.parametrize("name", ["max_batch_size", "max_queue_rows", "concurrency"])
def test_counts_that_do_not_fit_the_native_core_are_refused(name: str) -> None:
    refused(ValueError, f"{name} must be at most 2147483647, got 2147483648", **{name: 2**31})


def test_integers_of_numpy_are_counts() -> None:
    options = BatchOptions(max_batch_size=np.int64(7))
    assert type(options.max_batch_size) is int
    assert options.max_batch_size == 7


@pytest.mark.parametrize("size", [1, 2, 128, 65_536])
def test_boundary_sizes_are_accepted(size: int) -> None:
    assert BatchOptions(max_batch_size=size, max_queue_rows=65_536).max_batch_size == size


@pytest.mark.parametrize("name", ["max_latency_ms", "run_timeout_ms"])
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf")])
def test_durations_out_of_range_are_refused(name: str, value: float) -> None:
    refused(ValueError, f"{name} must be finite and above 0, got {value!r}", **{name: value})


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_waits_out_of_range_are_refused(value: float) -> None:
    refused(ValueError, f"max_wait_ms must be finite and at least 0, got {value!r}", max_wait_ms=value)


def test_zero_wait_is_accepted() -> None:
    assert BatchOptions(max_wait_ms=0).max_wait_ms == 0


@pytest.mark.parametrize("name", ["max_latency_ms", "max_wait_ms", "run_timeout_ms"])
@pytest.mark.parametrize("value", ["10", True, [1]])
def test_durations_that_are_no_numbers_are_refused(name: str, value: object) -> None:
    refused(TypeError, f"{name} must be a number of milliseconds or None, got {value!r}", **{name: value})


def test_unknown_objective_is_refused() -> None:
    refused(ValueError, "objective must be one of 'latency', 'throughput', got 'speed'", objective="speed")


def test_unknown_execution_is_refused() -> None:
    refused(ValueError, "execution must be one of 'thread', 'inline', got 'process'", execution="process")


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_isolate_errors_is_a_bool(value: object) -> None:
    refused(TypeError, f"isolate_errors must be True or False, got {value!r}", isolate_errors=value)


def test_queue_smaller_than_one_batch_is_refused() -> None:
    message = "max_queue_rows (10) is below max_batch_size (128): no batch could ever be full"
    refused(ValueError, message, max_queue_rows=10)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ([], ValueError, "allowed_batch_sizes must name 1 to 64 sizes, got 0"),
        (list(range(64, 129)), ValueError, "allowed_batch_sizes must name 1 to 64 sizes, got 65"),
        (
            [64, 32, 128],
            ValueError,
            "allowed_batch_sizes must be ascending without repeats, got (64, 32, 128)",
        ),
        ([8, 8, 128], ValueError, "allowed_batch_sizes must be ascending without repeats, got (8, 8, 128)"),
        ([8, 64], ValueError, "the last of allowed_batch_sizes must be max_batch_size (128), got 64"),
        ([0, 128], ValueError, "allowed_batch_sizes must be at least 1, got 0"),
        ([1.5, 128], TypeError, "allowed_batch_sizes must be an int, got 1.5"),
        ("8", TypeError, "allowed_batch_sizes must be a list of ints, got '8'"),
        (b"8", TypeError, "allowed_batch_sizes must be a list of ints, got b'8'"),
    ],
)
def test_bad_allowed_batch_sizes_are_refused(sizes: Any, error: type[Exception], message: str) -> None:
    refused(error, message, allowed_batch_sizes=sizes)


def test_allowed_batch_sizes_are_kept_as_a_tuple() -> None:
    assert BatchOptions(allowed_batch_sizes=[8, 64, 128]).allowed_batch_sizes == (8, 64, 128)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("threshold", TypeError, "static_args must be a sequence of argument names, got 'threshold'"),
        (5, TypeError, "static_args must be a sequence of argument names, got 5"),
        (["a", 1], TypeError, "static_args must hold argument names, got 1"),
        (["not a name"], TypeError, "static_args must hold argument names, got 'not a name'"),
        (["a", "a"], ValueError, "static_args names an argument twice: ('a', 'a')"),
    ],
)
def test_bad_static_args_are_refused(names: Any, error: type[Exception], message: str) -> None:
    refused(error, message, static_args=names)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match="max_size"):
        BatchOptions(max_size=3)


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        BatchOptions(128)


def test_options_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BatchOptions().max_batch_size = 3


def test_a_changed_copy_is_validated_too() -> None:
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        dataclasses.replace(BatchOptions(), max_batch_size=0)


def test_options_are_values() -> None:
    options = BatchOptions(max_batch_size=64, allowed_batch_sizes=[8, 64], static_args=["threshold"])
    assert pickle.loads(pickle.dumps(options)) == options
    assert len({options, dataclasses.replace(options)}) == 1
