"""The contract of the public API: the same answers and errors from every way of calling.

Every test here runs over threads and coroutines, embedded on a worker thread and inline,
over a service in the process that owns it, and over a connection to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest

import batching
from batching import (
    BatchOptions,
    DeadlineExceeded,
    InvalidPayload,
    Overloaded,
    RunnerClosed,
    RunnerError,
)

WAYS = ["embedded-thread", "embedded-asyncio", "inline-thread", "inline-asyncio", "service", "connected"]


class Way:
    """One way of calling: a call, or several at the same time."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self.handle = handle

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        (outcome,) = self.together([(method, args, kwargs)])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def together(self, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """The answer or error of each of several concurrent calls."""
        if self.name.endswith("asyncio"):
            return asyncio.run(self._together_in_loop(calls))
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [
                pool.submit(getattr(self.handle, name), *args, **kwargs) for name, args, kwargs in calls
            ]
        return [future.exception() or future.result() for future in futures]

    async def _together_in_loop(self, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        coroutines = [getattr(self.handle, f"async_{name}")(*args, **kwargs) for name, args, kwargs in calls]
        return await asyncio.gather(*coroutines, return_exceptions=True)

    def run_all(self, items: list[Any], **kwargs: Any) -> list[Any]:
        return self.together([("run", (item,), kwargs) for item in items])


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Callable[[type], Way]]:
    """Makes a `Way` to a runner of a class; one runner a class and module."""
    ways: dict[type, Way] = {}
    closers: list[Callable[[], Any]] = []

    def make(cls: type) -> Way:
        if cls not in ways:
            handle, close = open_handle(request.param, cls())
            ways[cls] = Way(request.param, handle)
            closers.append(close)
        return ways[cls]

    yield make
    for close in closers:
        close()


def open_handle(way: str, runner: Any) -> tuple[Any, Callable[[], Any]]:
    if way.startswith("embedded"):
        return runner, runner.close
    if way.startswith("inline"):
        runner.options = replace(runner.options, execution="inline")
        return runner, runner.close
    service = batching.runner_service(runner)
    service.start()
    if way == "service":
        return service, service.stop
    handle = batching.connect(service.endpoint, runner.name)

    def close() -> None:
        handle.close()
        service.stop()

    return handle, close


# ---- run: one item ----------------------------------------------------------------------


def test_an_array_is_one_item_and_its_answer_is_one_row(way):
    answer = way(models.Double)("run", np.array([1.0, 2.0], dtype=np.float32))
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, [2.0, 4.0])


def test_an_array_without_dimensions_is_one_item(way):
    answer = way(models.Double)("run", np.array(3))
    assert answer == 6
    assert np.ndim(answer) == 0


def test_a_frame_of_one_row_comes_back_as_a_frame_of_one_row(way):
    frame = pd.DataFrame({"a": [1.5], "b": [2]}, index=["x"])
    pd.testing.assert_frame_equal(way(models.Double)("run", frame), frame * 2)


def test_a_series_is_one_row_of_a_frame(way):
    answer = way(models.Double)("run", pd.Series({"a": 1.5, "b": 2.0}))
    assert isinstance(answer, pd.DataFrame)
    assert answer.to_dict("records") == [{"a": 3.0, "b": 4.0}]


def test_a_frame_of_two_rows_is_refused_by_run_which_names_run_batch(way):
    with pytest.raises(InvalidPayload, match=r"2 rows.*run_batch|run_batch.*2 rows"):
        way(models.Double)("run", pd.DataFrame({"a": [1, 2]}))


@pytest.mark.parametrize(
    "item", ["text", 7, (1, 2), [1, 2], None, {"a": 1}], ids=lambda item: type(item).__name__
)
def test_anything_else_is_one_element_of_a_list(way, item):
    assert way(models.Echo)("run", item) == item


# ---- run_batch: rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [np.arange(6.0).reshape(3, 2), np.zeros((0, 2)), np.arange(3), np.array(["a", "bc"])],
    ids=["matrix", "no rows", "vector", "strings"],
)
def test_rows_of_an_array_come_back_in_order(way, rows):
    answer = way(models.Echo)("run_batch", rows)
    assert answer.dtype == rows.dtype
    np.testing.assert_array_equal(answer, rows)


def test_rows_of_a_frame_keep_the_callers_index_and_dtypes(way):
    frame = pd.DataFrame(
        {"f": [1.5, 2.5], "i": [1, 2], "s": ["a", "b"], "c": pd.Categorical(["u", "v"])},
        index=pd.DatetimeIndex(["2024-01-01", "2024-01-02"]),
    )
    pd.testing.assert_frame_equal(way(models.Echo)("run_batch", frame), frame, check_freq=False)


def test_rows_of_a_series_keep_the_callers_index_and_name(way):
    series = pd.Series([1.0, 2.0], index=["x", "y"], name="price")
    pd.testing.assert_series_equal(way(models.Echo)("run_batch", series), series)


def test_a_list_is_as_many_rows_as_it_has_elements(way):
    assert way(models.Echo)("run_batch", ["a", None, {"k": [1]}]) == ["a", None, {"k": [1]}]
    assert way(models.Echo)("run_batch", []) == []


@pytest.mark.parametrize(
    "refused",
    [(1, 2), "text", {"a": [1]}, iter([1]), np.ma.masked_array([1, 2], [0, 1]), np.array(5), 3],
    ids=["tuple", "str", "dict", "generator", "masked", "no axis", "int"],
)
def test_what_has_no_rows_is_refused_by_run_batch(way, refused):
    with pytest.raises(InvalidPayload, match=r"run_batch|rows|axis"):
        way(models.Echo)("run_batch", refused)


def test_a_call_larger_than_a_batch_is_cut_and_put_together_again_in_order(way):
    rows = np.arange(2000.0).reshape(1000, 2)
    np.testing.assert_array_equal(way(models.Echo)("run_batch", rows), rows)
    assert way(models.Echo)("run_batch", list(range(1000))) == list(range(1000))


def test_no_batch_has_more_rows_than_max_batch_size(way):
    sizes = way(models.BatchSize).together([("run_batch", (np.zeros((n, 1)),), {}) for n in (3, 8, 21, 5, 1)])
    assert [len(answer) for answer in sizes] == [3, 8, 21, 5, 1]
    assert max(int(size) for answer in sizes for size in answer) <= 8


def test_every_caller_gets_exactly_its_own_rows(way):
    items = [np.full(4, i, dtype=np.float64) for i in range(100)]
    for item, answer in zip(items, way(models.Double).run_all(items), strict=True):
        np.testing.assert_array_equal(answer, item * 2)


def test_calls_of_different_keys_do_not_disturb_each_other(way):
    items = [np.zeros(3), np.zeros(4), np.zeros(3, np.float32), "text", 1, pd.DataFrame({"a": [1]})] * 4
    for item, answer in zip(items, way(models.Echo).run_all(items), strict=True):
        assert type(answer) is type(item)
        assert np.shape(answer) == np.shape(item)


# ---- arguments and outputs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((np.array([1.0, 2.0]), np.array([10.0, 20.0]), 3.0), {}),
        ((np.array([1.0, 2.0]), np.array([10.0, 20.0])), {"factor": 3.0}),
        ((np.array([1.0, 2.0]),), {"factor": 3.0, "shift": np.array([10.0, 20.0])}),
        ((), {"shift": np.array([10.0, 20.0]), "factor": 3.0, "x": np.array([1.0, 2.0])}),
    ],
    ids=["positional", "static by name", "mixed", "all by name"],
)
def test_arguments_bind_as_in_a_plain_call(way, args, kwargs):
    np.testing.assert_array_equal(way(models.Scale)("run", *args, **kwargs), [13.0, 26.0])


def test_no_call_sees_another_callers_static_value(way):
    calls = [("run", (np.ones(2), np.zeros(2)), {"factor": float(i % 3)}) for i in range(30)]
    for i, answer in enumerate(way(models.Scale).together(calls)):
        np.testing.assert_array_equal(answer, [i % 3, i % 3])


def test_batched_arguments_of_different_row_counts_are_refused_with_both(way):
    with pytest.raises(InvalidPayload, match=r"2.*3"):
        way(models.Scale)("run_batch", np.zeros((2, 1)), np.zeros((3, 1)))


def test_an_unknown_argument_is_refused(way):
    with pytest.raises(InvalidPayload, match="colour"):
        way(models.Scale)("run", np.zeros(2), np.zeros(2), colour="red")


def test_several_outputs_are_cut_one_by_one(way):
    array, texts, sums = way(models.Outputs)("run_batch", np.arange(4.0).reshape(2, 2))
    np.testing.assert_array_equal(array, [[1, 2], [3, 4]])
    assert texts == ["1.0", "5.0"]
    np.testing.assert_array_equal(sums, [1, 5])
    one_array, one_text, one_sum = way(models.Outputs)("run", np.array([1.0, 2.0]))
    np.testing.assert_array_equal(one_array, [2, 3])
    assert one_text == "3.0"
    assert one_sum == 3.0


def test_hooks_may_be_coroutine_functions(way, request):
    if "inline" in request.node.callspec.params["way"]:
        with pytest.raises(ValueError, match="async def"):
            way(models.AsyncDouble)("run", np.ones(2))
    else:
        np.testing.assert_array_equal(way(models.AsyncDouble)("run", np.ones(2)), [2, 2])


def test_a_simple_runner_is_never_batched(way):
    assert way(models.Greet)("run", "ann") == "hello ann"
    assert way(models.Greet)("run", "bob", greeting="hi") == "hi bob"
    assert not hasattr(way(models.Greet).handle, "run_batch")
    with pytest.raises(RunnerError, match="nobody is here"):
        way(models.Greet)("run", "nobody")


def test_an_exception_that_a_simple_runner_returns_is_raised(way):
    # Not by `together`, which takes what is raised for what is returned.
    caller = way(models.Fails)
    with pytest.raises(ValueError, match="returned"):
        asyncio.run(caller.handle.async_run(1)) if caller.name.endswith("asyncio") else caller.handle.run(1)


# ---- memory ------------------------------------------------------------------------------------


def test_an_answer_is_the_callers_own_and_writable(way):
    items = [np.full(3, i, dtype=np.int64) for i in range(8)]
    answers = way(models.Echo).run_all(items)
    for answer in answers:
        answer += 100
    for i, (item, answer) in enumerate(zip(items, answers, strict=True)):
        np.testing.assert_array_equal(item, np.full(3, i))
        np.testing.assert_array_equal(answer, np.full(3, i + 100))


# ---- errors ------------------------------------------------------------------------------------


def test_an_exception_in_a_row_is_raised_to_that_caller_alone(way):
    answers = way(models.Upper).run_all(["a", "boom", "b"])
    assert answers[0] == "A"
    assert answers[2] == "B"
    assert isinstance(answers[1], ValueError)
    assert str(answers[1]) == "boom in a row"


def test_an_exception_in_a_row_of_a_cut_call_fails_the_call(way):
    with pytest.raises(ValueError, match="boom in a row"):
        way(models.Upper)("run_batch", ["boom", *["a"] * 300])


def test_only_the_guilty_calls_of_a_batch_fail(way):
    answers = way(models.Picky).run_all([np.array([float(x)]) for x in (1, 4, -1, 9, 16)])
    assert isinstance(answers[2], RunnerError)
    assert answers[2].type_name == "KeyError"
    assert "negative" in answers[2].message
    assert "_run_batch" in answers[2].traceback
    np.testing.assert_array_equal(np.concatenate(answers[:2] + answers[3:]), [1, 2, 3, 4])


def test_what_a_model_was_refused_by_a_runner_of_its_own_is_its_error(way):
    with pytest.raises(RunnerError, match="_run_batch raised InvalidPayload") as caught:
        way(models.Asks)("run_batch", np.zeros((3, 1)))
    assert caught.value.type_name == "InvalidPayload"
    assert "_run_batch" in caught.value.traceback


def test_each_caller_has_an_error_of_its_own(way):
    first, second = way(models.Picky).run_all([np.array([-1.0]), np.array([-2.0])])
    assert first is not second
    assert isinstance(first.__cause__, KeyError)


def test_a_result_of_the_wrong_length_says_both_counts(way):
    with pytest.raises(RunnerError, match=r"3 rows.*2|2.*3 rows"):
        way(models.Short)("run_batch", np.zeros((3, 2)))


@pytest.mark.parametrize("what", ["dict", "str", "set", "none", "generator"])
def test_a_result_without_rows_is_an_error_that_names_its_type(way, what):
    with pytest.raises(RunnerError, match=r"ndarray, DataFrame, Series, list"):
        way(models.Returns)("run", 1, what=what)


def test_a_call_from_inside_the_batch_is_an_error_and_no_deadlock(way):
    with pytest.raises(RunnerError, match="inside"):
        way(models.Recursive)("run", 1)


def test_a_deadline_must_be_a_number_of_milliseconds(way):
    with pytest.raises(InvalidPayload, match="soon"):
        way(models.Echo)("run", 1, deadline_ms="soon")
    with pytest.raises(InvalidPayload, match="-1"):
        way(models.Echo)("run", 1, deadline_ms=-1)


def test_a_deadline_that_has_passed_is_deadline_exceeded(way):
    with pytest.raises((DeadlineExceeded, Overloaded), match="ms"):
        way(models.Echo)("run", 1, deadline_ms=0)


def test_a_call_with_more_rows_than_the_queue_may_hold_is_invalid(way):
    with pytest.raises(InvalidPayload, match=r"65537.*65536"):
        way(models.Echo)("run_batch", np.zeros((65_537, 1), dtype=np.int8))


# ---- statistics ------------------------------------------------------------------------------------


def test_statistics_add_up(way, request):
    caller = way(models.Echo)
    caller("run", 1)
    numbers = caller.handle.statistics()
    live = numbers.queued_calls
    ended = numbers.answered + numbers.failed + numbers.refused + numbers.expired + numbers.cancelled
    assert numbers.calls == ended + live
    assert sum(numbers.batch_rows) == numbers.batches
    assert sum(numbers.release_reasons.values()) == numbers.batches
    assert numbers.workers_ready == 1


def test_statistics_tell_of_each_release_why_and_what_it_cost(way):
    caller = way(models.Echo)
    for item in range(3):
        caller("run", item)
    numbers = caller.handle.statistics()
    assert [release.number for release in numbers.recent_releases] == list(range(1, numbers.batches + 1))
    last = numbers.recent_releases[-1]
    assert (last.calls, last.rows, last.padded_rows, last.idle_workers) == (1, 1, 1, 1)
    assert last.reason in numbers.release_reasons
    assert last.outcome == "ok"
    assert last.predicted_cost_ms > 0
    assert last.actual_cost_ms > 0
    foreseen = [release for release in numbers.recent_releases if release.predicted_cost_ms is not None]
    actual_ms = sum(release.actual_cost_ms for release in foreseen)
    assert sum(numbers.actual_cost_ms.values()) == pytest.approx(actual_ms)
    assert set(numbers.predicted_cost_ms) == set(numbers.release_reasons)


# ---- the beginning and the end -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["embedded", "inline", "service"])
def test_a_setup_that_raises_reaches_the_callers_with_its_traceback(kind):
    runner = models.SetupFails(options=BatchOptions(execution="inline" if kind == "inline" else "thread"))
    if kind == "service":
        with pytest.raises(RunnerError, match=r"iris\.joblib") as caught:
            batching.runner_service(runner).start()
        assert "_setup" in caught.value.traceback
        return
    for _ in range(2):  # waiting and later calls alike
        with pytest.raises(RunnerError, match=r"iris\.joblib") as caught:
            runner.run(1)
        assert caught.value.type_name == "OSError"
        assert isinstance(caught.value.__cause__, OSError)
    runner.close()


@pytest.mark.parametrize("kind", ["embedded", "inline", "service"])
def test_after_close_calls_are_refused(kind):
    handle, close = open_handle(kind, models.Echo())
    assert handle.run(1) == 1
    close()
    close()
    with pytest.raises(RunnerClosed):
        handle.run(1)


def test_a_service_that_is_not_started_refuses_calls():
    with pytest.raises(RunnerClosed, match="start"):
        batching.runner_service(models.Echo()).run(1)
