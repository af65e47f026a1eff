"""Calls bound, joined, cut and rejoined: who gives what to the model, and who gets what back."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import payload_models
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal

from batching._native.rows import VIEW_ROW_BYTES
from batching.errors import InvalidPayload, RunnerError
from batching.payloads import make_var, pickling
from batching.payloads.padding import Pad
from batching.signature import InvalidResult, Signature


def one(x): ...


def run_calls(signature: Signature, model: Any, *calls: Any, batched: bool = True) -> list[Any]:
    """Every call's answer, all joined into one batch, in one process and over the wire alike."""
    described = [signature.describe((call,), {}, batched) for call in calls]
    rows = [call.rows for call in described]
    assert len({call.key for call in described}) == 1
    args, kwargs = signature.join([(call.payload, 0, call.rows) for call in described])
    parts = signature.split(model(*args, **kwargs), rows)
    return [signature.finish(call.payload, [part]) for call, part in zip(described, parts, strict=True)]


# --- binding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, 2), {}), ((1,), {"y": 2}), ((), {"x": 1, "y": 2}), ((), {"y": 2, "x": 1})],
)
def test_arguments_by_position_and_by_name_are_the_same_call(args, kwargs) -> None:
    def model(x, y): ...

    signature = Signature(model)
    described = signature.describe(args, kwargs, False)
    assert described.key == signature.describe((1, 2), {}, False).key
    assert signature.join([(described.payload, 0, 1)]) == (([1], [2]), {})


def test_a_default_of_a_batched_argument_is_left_to_the_model() -> None:
    def model(x, y=5, *, z=6): ...

    signature = Signature(model)
    assert signature.join([(signature.describe((1,), {}, False).payload, 0, 1)]) == (([1],), {})
    assert signature.join([(signature.describe((1,), {"z": 3}, False).payload, 0, 1)]) == (([1],), {"z": [3]})


def test_an_argument_after_a_gap_goes_by_name() -> None:
    def model(x, y=5, z=6): ...

    signature = Signature(model)
    assert signature.join([(signature.describe((1,), {"z": 3}, False).payload, 0, 1)]) == (([1],), {"z": [3]})


def test_any_number_of_arguments_and_names() -> None:
    def model(*xs, **options): ...

    signature = Signature(model)
    described = signature.describe((1, 2), {"b": 3, "a": 4}, False)
    assert described.key == signature.describe((1, 2), {"a": 4, "b": 3}, False).key
    assert signature.join([(described.payload, 0, 1)]) == (([1], [2]), {"a": [4], "b": [3]})


def test_positional_only_arguments_stay_positional() -> None:
    def model(x, /, y): ...

    signature = Signature(model)
    with pytest.raises(InvalidPayload, match="positional"):
        signature.describe((), {"x": 1, "y": 2}, False)
    assert signature.join([(signature.describe((1, 2), {}, False).payload, 0, 1)]) == (([1], [2]), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [((), {}, "missing"), ((1, 2, 3), {}, "too many"), ((1,), {"nope": 2}, "nope")],
)
def test_a_call_that_does_not_fit_names_the_signature(args, kwargs, text) -> None:
    def model(x, y=None): ...

    with pytest.raises(InvalidPayload, match=text) as caught:
        Signature(model).describe(args, kwargs, False)
    assert "(x, y=None)" in str(caught.value)


def test_a_call_without_a_batched_argument_is_refused() -> None:
    def model(x=None, threshold=0.5): ...

    with pytest.raises(InvalidPayload, match="at least one batched argument"):
        Signature(model, static_args=["threshold"]).describe((), {"threshold": 1}, False)


def test_deadline_is_reserved() -> None:
    def model(x, deadline_ms=None): ...

    with pytest.raises(TypeError, match="deadline_ms"):
        Signature(model)


@pytest.mark.parametrize("name", ["unknown", "rest"])
def test_static_args_that_the_model_does_not_take_are_refused(name) -> None:
    def model(x, *rest): ...

    with pytest.raises(TypeError, match=name):
        Signature(model, static_args=[name])


def test_static_args_keep_their_value_and_get_their_default() -> None:
    def model(x, threshold=0.5, *, mode="fast"): ...

    signature = Signature(model, static_args=("threshold", "mode"))
    default = signature.describe((1,), {}, False)
    assert default.key == signature.describe((1, 0.5), {"mode": "fast"}, False).key
    assert signature.join([(default.payload, 0, 1)]) == (([1], 0.5), {"mode": "fast"})


def test_static_args_may_be_unhashable_and_unpicklable() -> None:
    def model(x, how): ...

    signature = Signature(model, static_args=["how"])
    lock = __import__("threading").Lock()
    described = signature.describe((1, {"lock": lock}), {}, False)
    assert described.key != signature.describe((1, {"lock": __import__("threading").Lock()}), {}, False).key
    assert signature.join([(described.payload, 0, 1)])[0][1] == {"lock": lock}


def test_bound_methods_leave_out_self() -> None:
    class Model:
        def run(self, x, scale): ...

    signature = Signature(Model().run, static_args=["scale"])
    assert signature.join([(signature.describe((1, 2), {}, False).payload, 0, 1)]) == (([1], 2), {})


def test_arguments_of_different_row_counts_are_refused_by_name() -> None:
    def model(x, y): ...

    with pytest.raises(InvalidPayload, match=r"'x' has 3, 'y' has 4"):
        Signature(model).describe((np.ones(3), [1, 2, 3, 4]), {}, True)


# --- what run and run_batch take ----------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [(1, 2), "text", b"bytes", {"a": 1}, {1, 2}, iter([1]), (i for i in ()), range(3), 7, None],
    ids=lambda value: type(value).__name__,
)
def test_run_batch_refuses_what_has_no_rows_and_names_its_type(value) -> None:
    with pytest.raises(InvalidPayload, match=type(value).__name__) as caught:
        Signature(one).describe((value,), {}, True)
    assert "ndarray, DataFrame, Series or list" in str(caught.value)


@pytest.mark.parametrize(
    "value", [np.ones((1, 1)).view(np.matrix), np.ma.array([1], mask=[True])], ids=["matrix", "masked"]
)
def test_run_batch_refuses_subclasses_of_ndarray(value) -> None:
    with pytest.raises(InvalidPayload, match=type(value).__name__):
        Signature(one).describe((value,), {}, True)


def test_run_batch_refuses_a_0d_array() -> None:
    with pytest.raises(InvalidPayload, match="0-d"):
        Signature(one).describe((np.array(3.0),), {}, True)


def test_subclasses_of_frames_are_refused_rather_than_lost() -> None:
    class Special(pd.DataFrame): ...

    for batched in (True, False):
        with pytest.raises(InvalidPayload, match="Special"):
            Signature(one).describe((Special({"a": [1]}),), {}, batched)


@pytest.mark.parametrize(
    "value", [[1, 2], (1, 2), "text", 7, None, {"a": 1}, np.float32(1), np.ma.array([1])]
)
def test_run_makes_everything_else_one_element_of_a_list(value) -> None:
    signature = Signature(one)
    described = signature.describe((value,), {}, False)
    [batch], _ = signature.join([(described.payload, 0, 1)])
    assert type(batch) is list
    assert batch[0] is value


def test_run_adds_the_axis_of_rows() -> None:
    signature = Signature(one)
    for item, shape in ((np.array(2.0), (2,)), (np.ones((3, 4)), (2, 3, 4)), (np.ones(0), (2, 0))):
        payload = signature.describe((item,), {}, False).payload
        [batch], _ = signature.join([(payload, 0, 1), (payload, 0, 1)])
        assert batch.shape == shape


def test_run_refuses_frames_of_other_than_one_row() -> None:
    for rows in (0, 2):
        with pytest.raises(InvalidPayload, match=rf"{rows} rows.*run_batch"):
            Signature(one).describe((pd.DataFrame({"a": range(rows)}),), {}, False)


def test_the_simple_path_is_for_one_positional_array_only() -> None:
    def two(x, y): ...

    def star(*xs): ...

    def named(*, x): ...

    assert Signature(one).simple
    assert Signature(star).simple
    assert not Signature(two).simple
    assert not Signature(named).simple
    assert not Signature(one, group_by=len).simple
    assert not Signature(one, pad=Pad()).simple
    assert not Signature(lambda x, y=1: x, static_args=["y"]).simple


class Counting(dict):
    """What was looked up in it."""

    def __init__(self) -> None:
        self.asked: list[type] = []

    def __getitem__(self, key: type) -> Any:
        self.asked.append(key)
        return super().__getitem__(key)


class Text(str):
    __slots__ = ()


def test_a_kind_is_found_by_one_access_to_a_dictionary_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x, y=None): ...

    signature = Signature(model, kinds=[payload_models.SignalKind()])
    registry = signature._registry
    values = [
        np.arange(3),
        pd.DataFrame({"a": [1]}),
        payload_models.Signals(8, np.ones(4)),
        {"of": [1, "list"]},
        Text("x"),
        pd.Series([1.5]),
    ]

    def asked(work: Any) -> tuple[Any, list[type]]:
        registry._found.asked = []
        return work(), registry._found.asked

    registry._found = Counting()
    for value in values:
        signature.describe((value,), {}, False)
        signature.describe(([value],), {}, True)
    # From now on every type is known: whatever else a lookup would do, it does not.
    monkeypatch.setattr(type(registry), "_look_up", None)
    for value in values[:-1]:
        call, types = asked(lambda value=value: signature.describe((value,), {}, False))
        assert types == [type(value)]
        _, types = asked(lambda call=call: signature.finish(call.payload, [call.payload.batches[0][1]]))
        assert types == [type(call.payload.batches[0][1])]
    # Becomes a row of a frame, so there are two types.
    assert asked(lambda: signature.describe((values[-1],), {}, False))[1] == [pd.Series, pd.DataFrame]
    # The types of elements are nobody's business.
    call, types = asked(lambda: signature.describe((values, np.arange(6)), {}, True))
    assert types == [list, np.ndarray]
    assert asked(lambda: signature.split((values, np.arange(6)), [2, 4]))[1] == [list, np.ndarray]
    # Over the wire a kind is named.
    sent, types = asked(lambda: signature.encode(call.payload))
    assert asked(lambda: signature.decode(sent.key, sent.buffers, 6))[1] == types == []


# --- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        "ab",
        {"a": 1, "b": 2},
        {1, 2},
        iter([1, 2]),
        None,
        3,
        np.float64(1),
        np.ones((2, 1)).view(np.matrix),
        (),
        range(2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_of_other_types_are_errors_never_split_by_iteration(result) -> None:
    with pytest.raises(InvalidResult, match=type(result).__name__):
        Signature(one).split(result, [1, 1])


@pytest.mark.parametrize(
    "result", [[1], [1, 2, 3], np.ones(3), pd.Series([1]), pd.DataFrame({"a": [1]}), ([1, 2], [1])]
)
def test_results_of_other_row_counts_are_errors_that_say_both(result) -> None:
    with pytest.raises(InvalidResult, match=r"given 2 rows and returned [13]"):
        Signature(one).split(result, [1, 1])


def test_a_0d_result_is_an_error() -> None:
    with pytest.raises(InvalidResult, match="0-d"):
        Signature(one).split(np.array(1), [1])


def test_run_gets_row_i_of_each_kind_of_result() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    array, vector, listed, series, table = run_calls(
        signature,
        lambda xs: (np.arange(4).reshape(2, 2), np.array([1.5, 2.5]), ["p", None], pd.Series([7, 8]), frame),
        "first",
        "second",
        batched=False,
    )[1]
    assert array.tolist() == [2, 3]
    assert vector == 2.5
    assert isinstance(vector, np.float64)
    assert listed is None
    assert series == 8
    assert_frame_equal(table, pd.DataFrame({"a": [2], "b": ["y"]}))


def test_several_outputs_are_cut_each_by_its_own_kind_and_rejoined() -> None:
    signature = Signature(one)
    payload = signature.describe((np.arange(4),), {}, True).payload
    parts = [
        signature.split((np.arange(2), ["a", "b"], pd.Series([1.0, 2.0])), [2])[0],
        signature.split((np.arange(2, 4), ["c", "d"], pd.Series([3.0, 4.0])), [2])[0],
    ]
    array, listed, series = signature.finish(payload, parts)
    assert array.tolist() == [0, 1, 2, 3]
    assert listed == ["a", "b", "c", "d"]
    assert_series_equal(series, pd.Series([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    ("first", "second", "texts"),
    [
        (np.zeros(1), np.zeros(1, dtype=np.float32), ["float64", "float32"]),
        (np.zeros((1, 2)), np.zeros((1, 3)), [r"\(1, 2\)", r"\(1, 3\)"]),
        (np.zeros(1), [1], ["ndarray", "list"]),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), ["a: int64", "b: int64"]),
        (pd.Series([1]), pd.Series([1.5]), ["int64", "float64"]),
        (([1], [2]), [1], ["2 outputs", "one output"]),
        (([1], [2]), ([1], [2], [3]), ["2 outputs", "3 outputs"]),
    ],
)
def test_parts_that_differ_are_an_error_naming_both(first, second, texts) -> None:
    signature = Signature(one)
    payload = signature.describe(([1, 2],), {}, True).payload
    parts = [signature.split(first, [1])[0], signature.split(second, [1])[0]]
    for text in texts:
        with pytest.raises(InvalidResult, match=text):
            signature.finish(payload, parts)


def test_an_exception_in_a_row_is_raised_to_that_caller_alone() -> None:
    def model(xs):
        return [ValueError(f"no {x}") if x < 0 else x for x in xs]

    signature = Signature(one)
    calls = [signature.describe((x,), {}, False) for x in (1, -2, 3)]
    [batch], _ = signature.join([(call.payload, 0, 1) for call in calls])
    parts = signature.split(model(batch), [1, 1, 1])
    assert signature.finish(calls[0].payload, parts[:1]) == 1
    with pytest.raises(ValueError, match="no -2"):
        signature.finish(calls[1].payload, parts[1:2])
    assert signature.finish(calls[2].payload, parts[2:]) == 3


def test_one_exception_in_two_rows_is_an_instance_for_each() -> None:
    error = KeyError("x")
    first, second = Signature(one).split([error, error], [1, 1])
    assert first[0] is error
    assert second[0] is not error
    assert type(second[0]) is KeyError
    assert second[0].args == error.args


# --- whose memory -------------------------------------------------------------------------------


def writes_are_private(model: Any, item: np.ndarray) -> None:
    signature = Signature(one)
    answers = run_calls(signature, model, item.copy(), item.copy(), item.copy(), batched=False)
    before = [answer.copy() for answer in answers]
    answers[0][...] = 77
    for answer, old in zip(answers[1:], before[1:], strict=True):
        assert np.array_equal(answer, old)
    for answer in answers:
        assert answer.flags.writeable


@pytest.mark.parametrize("size", [4, VIEW_ROW_BYTES])
def test_answers_are_private_when_the_model_returns_its_input(size) -> None:
    writes_are_private(lambda x: x, np.zeros(size))


@pytest.mark.parametrize("size", [4, VIEW_ROW_BYTES])
def test_answers_are_private_when_the_model_broadcasts(size) -> None:
    writes_are_private(lambda x: np.broadcast_to(np.ones(size), x.shape), np.zeros(size))


@pytest.mark.parametrize("size", [4, VIEW_ROW_BYTES])
def test_a_result_returned_twice_shows_no_caller_the_rows_of_another(size) -> None:
    kept = np.zeros((1, size))

    def model(x):
        kept[...] = x
        return kept

    signature = Signature(one)
    [first] = run_calls(signature, model, np.full(size, 1.0), batched=False)
    [second] = run_calls(signature, model, np.full(size, 2.0), batched=False)
    assert first[0] == 1
    assert second[0] == 2
    second[...] = 5
    assert kept[0, 0] == 2


def test_the_batch_is_never_the_callers_own_array() -> None:
    signature = Signature(one)
    item = np.zeros(4)
    [batch], _ = signature.join([(signature.describe((item,), {}, False).payload, 0, 1)])
    assert not np.shares_memory(batch, item)
    assert batch.flags.writeable
    frame = pd.DataFrame({"a": [1.0]})
    [batch], _ = signature.join([(signature.describe((frame,), {}, True).payload, 0, 1)])
    batch.loc[0, "a"] = 5.0
    assert frame["a"].tolist() == [1.0]
    listed = [1]
    [batch], _ = signature.join([(signature.describe((listed,), {}, True).payload, 0, 1)])
    assert batch is not listed


def test_a_batch_the_model_keeps_is_not_written_again() -> None:
    signature = Signature(one)
    kept = []
    large = np.ones(100_000)
    for value in (1.0, 2.0, 3.0):
        [batch], _ = signature.join([(signature.describe((large * value,), {}, False).payload, 0, 1)])
        kept.append(batch[0])
    assert [row[0] for row in kept] == [1.0, 2.0, 3.0]


def test_a_large_result_handed_over_is_shared_out_as_views() -> None:
    result = np.zeros((3, VIEW_ROW_BYTES))
    place = result.__array_interface__["data"][0]
    box = [result]
    del result
    parts = Signature(one).split_owned(box, [1, 2])
    assert box == []
    assert parts[0].__array_interface__["data"][0] == place
    assert all(part.flags.writeable for part in parts)


def test_a_large_result_that_anybody_else_holds_is_copied() -> None:
    kept = np.zeros((3, VIEW_ROW_BYTES))
    for part in Signature(one).split_owned([kept], [1, 2]):
        assert not np.shares_memory(part, kept)
    view = kept[1]
    box = [kept]
    del kept
    for part in Signature(one).split_owned(box, [1, 2]):
        assert not np.shares_memory(part, view)


def test_several_outputs_handed_over_are_each_looked_at() -> None:
    kept = np.zeros((2, VIEW_ROW_BYTES))
    fresh = np.ones((2, VIEW_ROW_BYTES))
    place = fresh.__array_interface__["data"][0]
    box = [(kept, fresh)]
    del fresh
    (first, second), _ = Signature(one).split_owned(box, [1, 1])
    assert not np.shares_memory(first, kept)
    assert second.__array_interface__["data"][0] == place


# --- group_by and pad ---------------------------------------------------------------------------


def test_items_of_different_buckets_are_never_joined() -> None:
    signature = Signature(one, group_by=lambda item: len(item) // 10)
    keys = [signature.describe((list(range(n)),), {}, False).key for n in (3, 9, 10)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("item", "expected"),
    [(np.arange(3), np.ndarray), ([1, 2], list), (pd.DataFrame({"a": [1]}), pd.DataFrame), ("text", str)],
)
def test_group_by_sees_one_item_in_run_and_in_run_batch(item, expected) -> None:
    seen = []
    signature = Signature(one, group_by=lambda item: seen.append(item))
    signature.describe((item,), {}, False)
    rows = item if isinstance(item, pd.DataFrame) else ([item] if expected is not np.ndarray else item[None])
    signature.describe((rows,), {}, True)
    assert [type(each) for each in seen] == [expected, expected]


def test_a_call_of_several_buckets_is_joined_with_its_like_only() -> None:
    signature = Signature(one, group_by=lambda item: item)
    same = signature.describe((["a", "a"],), {}, True).key
    assert same == signature.describe(("a",), {}, False).key
    mixed = signature.describe((["a", "b"],), {}, True).key
    assert mixed == signature.describe((["b", "a", "b"],), {}, True).key
    assert mixed != same


def test_a_group_by_that_raises_fails_the_call_with_its_error() -> None:
    signature = Signature(one, group_by=lambda item: item["missing"])
    with pytest.raises(RunnerError, match="group_by raised KeyError") as caught:
        signature.describe(({},), {}, False)
    assert caught.value.type_name == "KeyError"
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_bucket_must_be_hashable() -> None:
    with pytest.raises(RunnerError, match="unhashable"):
        Signature(one, group_by=lambda item: [1]).describe((1,), {}, False)


def test_padded_items_of_different_length_become_one_array() -> None:
    def model(tokens, lengths): ...

    signature = Signature(model, pad=Pad(value=-1, lengths="lengths"))
    calls = [signature.describe((np.arange(n),), {}, False) for n in (2, 0, 3)]
    assert len({call.key for call in calls}) == 1
    args, kwargs = signature.join([(call.payload, 0, 1) for call in calls])
    assert args[0].tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, 2]]
    assert args[0].dtype == np.int64
    assert kwargs["lengths"].tolist() == [2, 0, 3]


def test_padding_keeps_the_axes_after_the_length_and_takes_batches() -> None:
    signature = Signature(one, pad=Pad(value=9.0))
    calls = [
        signature.describe((np.zeros((2, 1, 3)),), {}, True),
        signature.describe(([np.ones((2, 3)), np.ones((0, 3))],), {}, True),
        signature.describe((np.ones((1, 3)),), {}, False),
    ]
    assert len({call.key for call in calls}) == 1
    [batch], kwargs = signature.join([(call.payload, 0, call.rows) for call in calls])
    assert batch.shape == (5, 2, 3)
    assert kwargs == {}
    assert batch[:, :, 0].tolist() == [[0, 9], [0, 9], [1, 1], [9, 9], [1, 9]]


def test_padding_of_several_arguments_by_name() -> None:
    def model(a, b, *, lengths_b): ...

    signature = Signature(model, pad={"b": Pad(0, lengths="lengths_b")})
    described = signature.describe((np.ones(2), np.ones(3)), {}, False)
    args, kwargs = signature.join([(described.payload, 0, 1), (described.payload, 0, 1)])
    assert args[0].shape == (2, 2)
    assert args[1].shape == (2, 3)
    assert kwargs["lengths_b"].tolist() == [3, 3]


def test_items_that_differ_in_more_than_length_are_not_joined() -> None:
    signature = Signature(one, pad=Pad())
    items = [np.ones(3), np.ones(3, dtype=np.float32), np.ones((3, 2))]
    assert len({signature.describe((item,), {}, False).key for item in items}) == 3
    with pytest.raises(InvalidPayload, match="differ in length only"):
        signature.describe(([np.ones(3), np.ones((3, 2))],), {}, True)
    with pytest.raises(InvalidPayload, match="length"):
        signature.describe((np.ones(3),), {}, True)


@pytest.mark.parametrize(
    ("value", "batched", "got"),
    [
        (np.array(3), False, "int64 of shape ()"),
        ([1, 2], False, "list"),
        ("text", False, "str"),
        (None, False, "NoneType"),
        (pd.DataFrame({"a": [1]}), False, "DataFrame"),
        (np.ma.array([1, 2]), False, "MaskedArray"),
        ([[1, 2], [3]], True, "list"),
        ([np.arange(2), np.array(3)], True, "int64 of shape ()"),
        (pd.DataFrame({"a": [1]}), True, "DataFrame"),
        (np.ma.array([[1, 2]]), True, "MaskedArray"),
        ((np.arange(2),), True, "tuple"),
    ],
)
def test_what_has_no_length_is_not_padded(value, batched, got) -> None:
    """Nor given to the model as something else, which has no lengths to go with it."""

    def model(tokens, lengths): ...

    with pytest.raises(InvalidPayload, match=rf"argument 'tokens': .*ndarrays.*got {re.escape(got)}$"):
        Signature(model, pad=Pad(lengths="lengths")).describe((value,), {}, batched)


@pytest.mark.parametrize("nothing", [[], np.empty((0, 3)), np.empty((0, 0, 2))])
def test_padding_of_no_item_is_an_empty_array(nothing) -> None:
    def model(tokens, lengths): ...

    signature = Signature(model, pad=Pad(lengths="lengths"))
    call = signature.describe((nothing,), {}, True)
    sent = signature.encode(call.payload)
    for args, kwargs in (
        signature.join([(call.payload, 0, 0)]),
        signature.decode(sent.key, sent.buffers, 0),
    ):
        assert args[0].shape == (0, 0, *np.shape(nothing)[2:])
        assert kwargs["lengths"].shape == (0,)


def test_a_value_that_does_not_fit_the_items_is_the_error_of_their_caller() -> None:
    signature = Signature(one, pad=Pad(300))
    assert signature.describe((np.arange(3),), {}, False).rows == 1
    for _ in range(2):
        with pytest.raises(InvalidPayload, match="items of uint8 cannot be padded with 300"):
            signature.describe((np.arange(3, dtype=np.uint8),), {}, False)


def test_items_of_objects_are_padded_on_both_sides_of_the_wire() -> None:
    def model(tokens, lengths): ...

    signature = Signature(model, pad=Pad(value=None, lengths="lengths"))
    items = [np.array(["a", {"b": 1}], dtype=object), np.array([2.5], dtype=object)]
    call = signature.describe((items,), {}, True)
    sent = signature.encode(call.payload)
    for args, kwargs in (
        signature.join([(call.payload, 0, 2)]),
        signature.decode(sent.key, sent.buffers, 2),
    ):
        assert args[0].tolist() == [["a", {"b": 1}], [2.5, None]]
        assert kwargs["lengths"].tolist() == [2, 1]
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.encode(call.payload, allow_pickle=False)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.decode(sent.key, sent.buffers, 2, allow_pickle=False)
    for other in (np.zeros(2), np.array([["a"]], dtype=object), "text", None):
        with pytest.raises(InvalidPayload, match=r"an item of .* is not object of shape"):
            signature.decode(sent.key, [make_var([pickling.dumps(other)] * 2)], 2)


def test_lengths_are_not_the_callers_to_give() -> None:
    def model(tokens, lengths): ...

    with pytest.raises(InvalidPayload, match="lengths"):
        Signature(model, pad=Pad(lengths="lengths")).describe((np.ones(2),), {"lengths": [2]}, False)


@pytest.mark.parametrize(
    ("pad", "static"),
    [
        (Pad(lengths="unknown"), ()),
        ({"unknown": Pad()}, ()),
        ({"x": 0}, ()),
        ({"scale": Pad()}, ("scale",)),
        (Pad(lengths="scale"), ("scale",)),
    ],
)
def test_padding_that_contradicts_the_signature_is_refused(pad, static) -> None:
    def model(x, scale=1): ...

    with pytest.raises(TypeError, match="pad"):
        Signature(model, pad=pad, static_args=static)


def test_partial_functions_and_callables_have_signatures() -> None:
    signature = Signature(functools.partial(lambda x, y: x, y=3))
    assert signature.describe((1,), {}, False).rows == 1
