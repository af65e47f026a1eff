"""What the kinds promise, asked of the engine and of a service: the same strategies, the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import models
import numpy as np
import pandas as pd
import payload_models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_index_equal
from strategies import (
    COLUMN_VALUES,
    Family,
    argument_families,
    assert_same,
    batches,
    columns,
    elements,
    frame_families,
    layouts,
    padded_families,
    same_array,
    same_element,
)

import batching
from batching import InvalidPayload, RunnerError

pytestmark = pytest.mark.slow

few = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", params=["embedded", "service", "connected"])
def handle(request: pytest.FixtureRequest) -> Iterator[Callable[[type], Any]]:
    """Makes a handle to a runner of a class; one a class."""
    handles: dict[type, Any] = {}
    closers: list[Callable[[], Any]] = []

    def make(cls: type) -> Any:
        if cls in handles:
            return handles[cls]
        runner = handles[cls] = cls()
        if request.param == "embedded":
            closers.append(runner.close)
            return runner
        service = handles[cls] = batching.runner_service(runner)
        service.start()
        if request.param == "connected":
            handles[cls] = batching.connect(service.endpoint, runner.name)
            closers.append(handles[cls].close)
        closers.append(service.stop)
        return handles[cls]

    yield make
    for close in closers:
        close()


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def together(pool: ThreadPoolExecutor, call: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    return list(pool.map(call, values))


@few
@given(batch=batches(), data=st.data())
def test_arrays_of_several_callers_come_back_as_they_were(handle, pool, batch, data) -> None:
    cut = data.draw(st.integers(0, len(batch)))
    parts = [data.draw(layouts(batch[:cut])), data.draw(layouts(batch[cut:])), batch]
    for part, answer in zip(parts, together(pool, handle(models.Echo).run_batch, parts), strict=True):
        assert same_array(part, answer)
        assert answer.flags.writeable
        assert not np.shares_memory(part, answer) or part.dtype.hasobject


@few
@given(frames=frame_families(max_frames=3))
def test_frames_of_several_callers_come_back_with_their_index(handle, pool, frames) -> None:
    for frame, answer in zip(frames, together(pool, handle(models.Echo).run_batch, frames), strict=True):
        assert_frame_equal(answer, frame, check_exact=True, check_freq=False)
        assert_index_equal(answer.index, frame.index)


@few
@given(lists=st.lists(st.lists(elements(), max_size=3), min_size=1, max_size=3))
def test_lists_of_several_callers_come_back_as_they_were(handle, pool, lists) -> None:
    for given_, answer in zip(lists, together(pool, handle(models.Echo).run_batch, lists), strict=True):
        assert same_element(answer, given_)


MODES = [1, True, 1.0, 0.0, -0.0, None, "default", "1", (1, "a"), b"1"]


@st.composite
def several_arguments(draw: Any) -> tuple[list[Family], dict[str, Family]]:
    """What the calls of one test have as arguments: by position, and by name."""
    positional = draw(st.lists(argument_families(), min_size=1, max_size=4))
    named = draw(st.dictionaries(st.sampled_from(["b", "a", "y"]), argument_families(), max_size=2))
    if len(positional) > 1:
        named.pop("y", None)
    return positional, named


def in_order(args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Batched arguments as `Several` returns them: by the order of its parameters, others by name."""
    named = {name: value for name, value in kwargs.items() if name != "mode"}
    return [*args, *([named.pop("y")] if "y" in named else []), *(named[name] for name in sorted(named))]


def check_several(answer: Any, args: list[Any], kwargs: dict[str, Any], told: Any) -> None:
    mode = kwargs.get("mode", "default")
    values = in_order(args, kwargs)
    assert len(answer) == len(values) + 1
    index = next((value.index for value in values if isinstance(value, (pd.DataFrame, pd.Series))), None)
    for given_, output in zip(values, answer, strict=False):
        assert_same(output, given_, index)
    expected = type(mode).__name__, repr(mode), max(0, len(args) - 2), sorted(set(kwargs) - {"mode", "y"})
    assert answer[-1] == told(expected)


@few
@given(arguments=several_arguments(), data=st.data())
def test_calls_of_several_arguments_get_their_own_of_every_output(handle, pool, arguments, data) -> None:
    positional, named = arguments
    calls = []
    for rows in data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)):
        args = [data.draw(family(rows)) for family in positional]
        kwargs = {name: data.draw(family(rows)) for name, family in named.items()}
        if data.draw(st.booleans()):
            kwargs["mode"] = data.draw(st.sampled_from(MODES))
        calls.append((rows, args, kwargs))
    run_batch = handle(payload_models.Several).run_batch
    answers = together(pool, lambda call: run_batch(*call[1], **call[2]), calls)
    for (rows, args, kwargs), answer in zip(calls, answers, strict=True):
        check_several(answer, args, kwargs, lambda each, rows=rows: [each] * rows)


def item_of(batch: Any) -> Any:
    """The only row of a batch, as `run` takes it."""
    if isinstance(batch, list):
        return batch[0]
    return batch if isinstance(batch, pd.DataFrame) else np.asarray(batch[0])


@few
@given(arguments=several_arguments(), data=st.data())
def test_items_of_several_arguments_get_their_own_of_every_output(handle, pool, arguments, data) -> None:
    positional, named = arguments
    calls = []
    for _ in range(data.draw(st.integers(1, 3))):
        args = [item_of(batch) for family in positional if is_of_items(batch := data.draw(family(1)))]
        kwargs = {
            name: item_of(batch)
            for name, family in named.items()
            if is_of_items(batch := data.draw(family(1)))
        }
        calls.append((args or [7], {**kwargs, "mode": data.draw(st.sampled_from(MODES))}))
    run = handle(payload_models.Several).run
    answers = together(pool, lambda call: run(*call[0], **call[1]), calls)
    for (args, kwargs), answer in zip(calls, answers, strict=True):
        check_several(answer, args, kwargs, lambda each: each)


def is_of_items(batch: Any) -> bool:
    """Whether a row of the batch is what `run` takes for one row of such a batch."""
    return not isinstance(batch, pd.Series)


@few
@given(name=st.sampled_from(sorted(COLUMN_VALUES)), data=st.data())
def test_a_series_is_one_row_of_a_frame_to_run(handle, pool, name, data) -> None:
    """Its index the columns, its name the row's label, its dtype every column's."""
    header = data.draw(st.sampled_from([["a"], ["a", "b"], ["a", "a"], [0, 1, 2]]))
    rows = []
    for title in (None, 7, ("x", 1)):
        each = data.draw(columns(name, len(header)))
        rows.append(pd.Series(each.array, index=header, dtype=each.dtype, name=title))
    for row, answer in zip(rows, together(pool, handle(models.Echo).run, rows), strict=True):
        assert isinstance(answer, pd.DataFrame)
        assert list(answer.columns) == header
        assert list(answer.index) == [0 if row.name is None else row.name]
        assert [answer.iloc[:, at].dtype for at in range(len(header))] == [row.dtype] * len(header)
        for at in range(len(header)):
            assert_same(pd.Series(answer.iloc[:, at].array), pd.Series(row.array[at : at + 1]))


def test_a_dtype_of_one_caller_is_not_that_of_another(handle, pool) -> None:
    values = [np.arange(3).astype(dtype) for dtype in ("i4", "i8", ">f8", "f2", "?", "M8[s]", "O")] * 3
    for value, answer in zip(values, together(pool, handle(models.Echo).run, values), strict=True):
        assert same_array(value, answer)


def test_a_kind_of_the_runners_own(handle, pool) -> None:
    signals = [payload_models.Signals(rate, np.arange(4.0) + rate) for rate in (8, 8, 100)]
    for given_, answer in zip(
        signals, together(pool, handle(payload_models.Halve).run, signals), strict=True
    ):
        assert isinstance(answer, payload_models.Signals)
        assert answer.rate_hz == given_.rate_hz // 2
        assert answer.values.tolist() == given_.values[::2].tolist()
    several = handle(payload_models.Halve).run_batch(payload_models.Signals(8, np.ones((3, 2))))
    assert several.values.shape == (3, 1)


@few
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=4
    )
)
def test_batches_of_a_kind_of_the_runners_own_are_joined_cut_and_rejoined(handle, pool, shapes) -> None:
    signals = [
        payload_models.Signals(rate, np.arange(rows * samples, dtype=float).reshape(rows, samples) + rate)
        for rate, samples, rows in shapes
    ]
    answers = together(pool, handle(payload_models.Halve).run_batch, signals)
    for given_, answer in zip(signals, answers, strict=True):
        assert answer.rate_hz == given_.rate_hz // 2
        assert same_array(answer.values, given_.values[:, ::2])


@few
@given(calls=st.lists(st.lists(st.text("ab", max_size=3), max_size=7), min_size=1, max_size=4))
def test_a_batch_holds_no_bucket_that_its_callers_have_not(handle, pool, calls) -> None:
    for texts, seen in zip(
        calls, together(pool, handle(payload_models.Buckets).run_batch, calls), strict=True
    ):
        assert len(seen) == len(texts)
        assert all(buckets <= set(map(len, texts)) for buckets in seen)


@few
@given(family=padded_families(), data=st.data())
def test_items_of_different_length_come_back_as_they_were(handle, pool, family, data) -> None:
    calls = [
        [data.draw(family(length)) for length in lengths]
        for lengths in data.draw(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=3))
    ]
    named = [(items, [f"{at} of {len(items)}" for at in range(len(items))]) for items in calls]
    runner = handle(payload_models.Trimmed)
    for (items, names), answer in zip(
        named, together(pool, lambda call: runner.run_batch(*call), named), strict=True
    ):
        assert same_element(answer[0], items)
        assert answer[1] == names
    singles = [(item, "name") for items in calls for item in items[:1]]
    for single, answer in zip(singles, together(pool, lambda call: runner.run(*call), singles), strict=True):
        assert same_element(answer, single)


@few
@given(family=argument_families(), rows=st.integers(0, 9), data=st.data())
def test_rows_that_fill_a_batch_up_to_an_allowed_size_are_nobodys(handle, family, rows, data) -> None:
    batch = data.draw(family(rows))
    answer, sizes, more = handle(payload_models.Allowed).run_batch(batch)
    assert_same(answer, batch)
    assert more.tolist() == sizes
    assert sizes == [8] * min(rows, 8) + [4] * max(0, rows - 8) if rows > 4 else sizes == [4] * rows


@pytest.mark.parametrize(
    ("value", "rows"),
    [(np.empty((0, 2)), 0), (np.empty((0, 2), "O"), 0), ([], 0), (pd.DataFrame({"a": []}), 0), ([1], 4)],
)
def test_a_batch_of_no_rows_is_not_filled_up(handle, value, rows) -> None:
    with pytest.raises(RunnerError, match=f"given {rows} rows"):
        handle(payload_models.Sizes).run_batch(value)


def test_items_of_different_buckets_never_share_a_batch(handle, pool) -> None:
    texts = ["a", "bb", "c", "dd", "eee"] * 8
    for text, seen in zip(texts, together(pool, handle(payload_models.Buckets).run, texts), strict=True):
        assert seen == {len(text)}


def test_a_bucket_that_cannot_be_told_fails_its_call_alone(handle) -> None:
    with pytest.raises(RunnerError, match="group_by raised TypeError") as caught:
        handle(payload_models.Buckets).run(7)
    assert caught.value.type_name == "TypeError"
    assert handle(payload_models.Buckets).run("a") == {1}


def test_a_group_by_that_would_end_the_process_ends_its_call_alone(handle) -> None:
    # In the caller's own thread that is what it asked for; elsewhere nobody did.
    with pytest.raises((SystemExit, RunnerError)):
        handle(payload_models.Buckets).run("the end")
    assert handle(payload_models.Buckets).run("a") == {1}


def test_ragged_arrays_are_padded_and_lengths_told(handle, pool) -> None:
    items = [np.arange(n) for n in (3, 0, 5, 1)] * 4
    for item, (total, length) in zip(
        items, together(pool, handle(payload_models.Sums).run, items), strict=True
    ):
        assert total == item.sum()
        assert length == len(item)
    total, lengths = handle(payload_models.Sums).run_batch(items[:3])
    assert total.tolist() == [3, 0, 10]
    assert lengths.tolist() == [3, 0, 5]


@pytest.mark.parametrize("columns", [3, 20_000])
@pytest.mark.parametrize("how", ["input", "view", "output", "broadcast", "all"])
def test_whatever_memory_a_model_returns_no_caller_and_no_batch_sees_a_write_of_another(
    handle, pool, how, columns
) -> None:
    run_batch = handle(payload_models.Hoarder).run_batch
    answers: list[np.ndarray] = []
    for turn in range(3):
        values = [np.full((rows, columns), 10.0 * turn + at) for at, rows in enumerate((1, 2, 1, 6))]
        for value, answer in zip(values, together(pool, lambda x: run_batch(x, how), values), strict=True):
            for output in answer if how == "all" else [answer]:
                assert same_array(output, value + 1)
                answers.append(output)
        for number, answer in enumerate(answers):
            answer[...] = -number
        for number, answer in enumerate(answers):
            assert (answer == -number).all()


def test_parts_of_one_call_that_differ_are_an_error_naming_both(handle) -> None:
    with pytest.raises(RunnerError, match=r"parts of one call differ: .*(int64|<i8).* and .*(float64|<f8)"):
        handle(payload_models.Rounds).run_batch(np.arange(4))


def test_a_row_that_cannot_travel_is_the_error_of_its_caller_alone(handle, pool) -> None:
    run = handle(payload_models.Generators).run

    def outcome(wanted: bool) -> Any:
        try:
            return run(wanted)
        except RunnerError as error:
            return str(error)

    for wanted, answer in zip([False, True] * 4, together(pool, outcome, [False, True] * 4), strict=True):
        if not wanted:
            assert answer == "none"
        elif isinstance(answer, str):
            assert "what cannot travel" in answer
            assert "generator" in answer
        else:
            # Embedded it does not travel.
            assert list(answer) == [0, 1, 2]


def test_what_cannot_be_joined_is_refused_with_the_rule(handle) -> None:
    with pytest.raises(InvalidPayload, match="one row, got 2 rows: use run_batch"):
        handle(models.Echo).run(pd.DataFrame({"a": [1, 2]}))
    with pytest.raises(InvalidPayload, match="got tuple: make it a list"):
        handle(models.Echo).run_batch((1, 2))
