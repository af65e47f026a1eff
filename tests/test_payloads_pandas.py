"""pandas: every dtype, label and index survives joining, cutting and the wire."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal
from strategies import COLUMN_VALUES, columns, frame_families, indexes
from wire import joined, sliced

from batching.errors import InvalidPayload
from batching.payloads import Fixed, Var, pandas_blocks
from batching.signature import InvalidResult, Signature

SLOW = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=50)


def one(x): ...


def same_frame(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert_frame_equal(one, other, check_exact=True, check_freq=False)


@pytest.fixture(params=[True, False], ids=["blocks", "public"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pandas_blocks, "PRIVATE", request.param and pandas_blocks.PRIVATE)
    return request.param


def test_this_version_of_pandas_is_read_by_its_blocks() -> None:
    assert pandas_blocks.PRIVATE


both_ways = settings(SLOW, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@both_ways
@given(frames=frame_families())
def test_a_batch_is_what_concat_makes_of_the_frames(way, frames) -> None:
    signature = Signature(one)
    calls = [signature.describe((frame,), {}, True) for frame in frames]
    assert len({call.key for call in calls}) == 1
    [batch], _ = signature.join([(call.payload, 0, call.rows) for call in calls])
    same_frame(batch, pd.concat(frames, ignore_index=True))
    assert isinstance(batch.index, pd.RangeIndex)


@pytest.mark.slow
@both_ways
@given(frames=frame_families())
def test_a_batch_from_the_wire_is_what_concat_makes_of_the_frames(way, frames) -> None:
    signature = Signature(one)
    calls = [signature.encode(signature.describe((frame,), {}, True).payload) for frame in frames]
    assert len({call.key for call in calls}) == 1
    rows = sum(call.rows for call in calls)
    [batch], _ = signature.decode(calls[0].key, joined(calls), rows)
    same_frame(batch, pd.concat(frames, ignore_index=True))


def test_a_batch_of_many_frames_is_one_frame_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = Signature(one)
    whole = pd.DataFrame({"a": range(9), "f": 0.5, "s": list("abcdefghi"), "c": pd.Categorical(["u"] * 9)})
    calls = [signature.describe((whole.iloc[[row]],), {}, False) for row in range(9)]
    sent = [signature.encode(call.payload) for call in calls]
    result = signature.encode_result(whole, 9)
    made: list[Any] = []
    from_blocks, from_data = pd.DataFrame._from_mgr.__func__, pd.DataFrame.__init__

    def counted(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(cls)
        return from_blocks(cls, *args, **kwargs)

    def counted_init(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(type(self))
        from_data(self, *args, **kwargs)

    monkeypatch.setattr(pd.DataFrame, "_from_mgr", classmethod(counted))
    monkeypatch.setattr(pd.DataFrame, "__init__", counted_init)
    [joined_here], _ = signature.join([(call.payload, 0, 1) for call in calls])
    assert made == [pd.DataFrame]
    [joined_there], _ = signature.decode(sent[0].key, joined(sent), 9)
    assert made == [pd.DataFrame] * 2
    # An answer is sent without a frame for each caller; each makes its own of its bytes.
    signature.encode_result(joined_there, 9)
    assert made == [pd.DataFrame] * 2
    signature.decode_result(*sliced(result, [1] * 9)[4])
    assert made == [pd.DataFrame] * 3
    monkeypatch.undo()
    same_frame(joined_here, whole)
    same_frame(joined_there, whole)


@pytest.mark.slow
@both_ways
@given(frames=frame_families(), over_wire=st.booleans())
def test_every_caller_gets_its_own_rows_and_index_back(way, frames, over_wire) -> None:
    signature = Signature(one)
    calls = [signature.describe((frame,), {}, True) for frame in frames]
    counts = [call.rows for call in calls]
    result = pd.concat(frames, ignore_index=True)
    if over_wire:
        encoded = signature.encode_result(result, len(result))
        parts = [signature.decode_result(*each) for each in sliced(encoded, counts)]
    else:
        parts = signature.split(result, counts)
    for call, part, frame in zip(calls, parts, frames, strict=True):
        answer = signature.finish(call.payload, [part])
        same_frame(answer, frame)
        assert_index_equal(answer.index, frame.index)


@pytest.mark.slow
@SLOW
@given(frames=frame_families(max_frames=1, max_rows=5), data=st.data())
def test_a_cut_call_is_rejoined(frames, data) -> None:
    [frame] = frames
    cut = data.draw(st.integers(0, len(frame)))
    signature = Signature(one)
    payload = signature.describe((frame,), {}, True).payload
    batches = [
        signature.join([(payload, first, rows)])[0][0] for first, rows in ((0, cut), (cut, len(frame) - cut))
    ]
    parts = [signature.split(batch, [len(batch)])[0] for batch in batches]
    same_frame(signature.finish(payload, parts), frame)


@pytest.mark.slow
@SLOW
@given(name=st.sampled_from(sorted(COLUMN_VALUES)), data=st.data())
def test_series_are_joined_cut_and_sent_as_they_are(name, data) -> None:
    signature = Signature(one)
    series = []
    for rows in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)):
        each = data.draw(columns(name, rows))
        series.append(pd.Series(each.array, index=data.draw(indexes(rows)), dtype=each.dtype, name="s"))
    calls = [signature.describe((each,), {}, True) for each in series]
    assert len({call.key for call in calls}) == 1
    expected = pd.concat(series, ignore_index=True)
    counts = [call.rows for call in calls]
    [batch], _ = signature.join([(call.payload, 0, call.rows) for call in calls])
    assert_series_equal(batch, expected, check_freq=False)
    encoded = [signature.encode(call.payload) for call in calls]
    [batch], _ = signature.decode(encoded[0].key, joined(encoded), len(expected))
    assert_series_equal(batch, expected, check_freq=False)
    result = signature.encode_result(expected, len(expected))
    parts = [signature.decode_result(*each) for each in sliced(result, counts)]
    for call, part, each in zip(calls, parts, series, strict=True):
        assert_series_equal(signature.finish(call.payload, [part]), each, check_freq=False)


@pytest.mark.parametrize("name", sorted(set(COLUMN_VALUES) - {"object", "str", "period"}))
def test_only_objects_and_the_unusual_need_pickle(name) -> None:
    frame = pd.DataFrame({"x": pd.Series([], dtype=COLUMN_VALUES[name][0])})
    signature = Signature(one)
    call = signature.encode(signature.describe((frame,), {}, True).payload, allow_pickle=False)
    if name != "interval":
        signature.decode(call.key, call.buffers, 0, allow_pickle=False)


def test_a_frame_of_objects_is_refused_where_pickle_is_not_allowed() -> None:
    frame = pd.DataFrame({"x": pd.Series([(1,)], dtype=object)})
    signature = Signature(one)
    payload = signature.describe((frame,), {}, True).payload
    with pytest.raises(InvalidPayload, match=r"pickle is not allowed.*object"):
        signature.encode(payload, allow_pickle=False)
    call = signature.encode(payload)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.decode(call.key, call.buffers, 1, allow_pickle=False)


def test_fixed_columns_are_one_record_a_row_and_strings_a_blob_each() -> None:
    frame = pd.DataFrame(
        {"a": [1.0, 2.0], "s": pd.array(["x", None], dtype="string"), "i": [3, 4], "b": [True, False]}
    )
    signature = Signature(one)
    record, text = signature.encode(signature.describe((frame,), {}, True).payload).buffers
    assert isinstance(record, Fixed)
    assert record.row_bytes == 8 + 8 + 1
    assert isinstance(text, Var)
    assert np.frombuffer(text.lengths, "<u4").tolist() == [1, 0xFFFFFFFF]


def test_a_row_from_the_wire_is_writable_aligned_and_its_own() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"b": [True], "i": [1], "f": [0.5], "h": np.array([2], dtype="i2"), "g": [1.5]})
    result = signature.encode_result(frame, 1)
    parts = [signature.decode_result(result.key, result.buffers, 1) for _ in range(2)]
    layout = pandas_blocks.recognise(frame)
    for values in pandas_blocks.content(parts[0], layout).fields:
        assert values.flags.aligned
        assert values.flags.writeable
    parts[0].loc[0, "f"] = 7.0
    same_frame(parts[1], frame)


def test_a_series_is_one_row_whose_columns_have_its_dtype() -> None:
    signature = Signature(one)
    row = pd.Series([1, 2], index=["a", "b"], name="r", dtype="int32")
    call = signature.describe((row,), {}, False)
    [batch], _ = signature.join([(call.payload, 0, 1), (call.payload, 0, 1)])
    same_frame(batch, pd.DataFrame({"a": [1, 1], "b": [2, 2]}, dtype="int32"))
    answer = signature.finish(call.payload, signature.split(batch, [1, 1])[:1])
    same_frame(answer, pd.DataFrame({"a": [1], "b": [2]}, index=["r"], dtype="int32"))


@pytest.mark.parametrize("dtype", ["category", "string", "Int64", "datetime64[ns, UTC]", object])
def test_a_series_of_any_dtype_is_one_row(dtype) -> None:
    row = pd.Series([1, 2], index=["a", "b"]).astype(dtype)
    call = Signature(one).describe((row,), {}, False)
    [batch], _ = Signature(one).join([(call.payload, 0, 1)])
    assert [each == row.dtype for each in batch.dtypes] == [True, True]
    assert batch.iloc[0].tolist() == row.tolist()


@pytest.mark.parametrize("values", [["x", "y"], ["x", None], [1, 2], [True, False], [pd.Timestamp(0), None]])
def test_a_series_of_objects_is_a_row_of_objects(values) -> None:
    """Whatever they are: a row of texts must not get another key than one of texts and numbers."""
    signature = Signature(one)
    array = np.empty(2, dtype=object)
    array[:] = values
    described = signature.describe((pd.Series(array, index=["a", "b"], dtype=object),), {}, False)
    mixed = pd.Series([1, "x"], index=["a", "b"], dtype=object)
    assert described.key == signature.describe((mixed,), {}, False).key
    [batch], _ = signature.join([(described.payload, 0, 1)])
    assert list(batch.dtypes) == [object, object]
    assert batch.iloc[0].tolist() == values


def test_a_row_of_a_frame_and_a_series_of_its_dtype_are_joined() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    keys = {signature.describe((row,), {}, False).key for row in (frame.iloc[[0]], frame.iloc[1])}
    assert len(keys) == 1


def test_the_index_of_the_first_pandas_argument_comes_back() -> None:
    def model(x, y, z): ...

    signature = Signature(model)
    y = pd.Series([1, 2], index=["p", "q"])
    z = pd.DataFrame({"a": [1, 2]}, index=["no", "no"])
    payload = signature.describe(([1, 2], y, z), {}, True).payload
    answer = signature.finish(payload, [(pd.Series([5, 6]), pd.DataFrame({"b": [7, 8]}), [1, 2])])
    assert answer[0].index.tolist() == ["p", "q"]
    assert answer[1].index.tolist() == ["p", "q"]


def test_without_a_pandas_argument_the_rows_are_numbered() -> None:
    signature = Signature(one)
    calls = [signature.describe(([1, 2],), {}, True), signature.describe(([3],), {}, True)]
    parts = signature.split(pd.Series([1, 2, 3], index=["x", "y", "z"]), [2, 1])
    answers = [signature.finish(call.payload, [part]) for call, part in zip(calls, parts, strict=True)]
    assert_series_equal(answers[0], pd.Series([1, 2]))
    assert_series_equal(answers[1], pd.Series([3]))


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(2, -1, -1),
        pd.Index([0, 2, 1]),
        pd.Index([1.0, 0.0, 2.0]),
        pd.Index([2, 1, 0], dtype=object),
        pd.Index([1, 2, 0], dtype="Int64"),
    ],
    ids=repr,
)
def test_a_result_in_another_order_is_an_error_that_says_so(index) -> None:
    for result in (pd.Series([1, 2, 3], index=index), pd.DataFrame({"a": [1, 2, 3]}, index=index)):
        with pytest.raises(InvalidResult, match="another order"):
            Signature(one).split(result, [1, 1, 1])
        with pytest.raises(InvalidResult, match="another order"):
            Signature(one).encode_result(result, 3)


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3),
        pd.RangeIndex(5, 8),
        pd.Index([0, 0, 1]),
        pd.Index([0, 1, 2], dtype=object),
        pd.Index(["b", "a", "c"]),
        pd.date_range("2020", periods=3),
        pd.MultiIndex.from_tuples([(2, 0), (1, 0), (0, 0)]),
        pd.Index([0.5, 2.0, 1.0]),
        pd.Index([np.nan, 1.0, 0.0]),
        pd.Index([True, False, True]),
    ],
    ids=repr,
)
def test_any_other_index_of_a_result_is_replaced(index) -> None:
    signature = Signature(one)
    payload = signature.describe(([1, 2, 3],), {}, True).payload
    part = signature.split(pd.DataFrame({"a": [1, 2, 3]}, index=index), [3])[0]
    same_frame(signature.finish(payload, [part]), pd.DataFrame({"a": [1, 2, 3]}))


@pytest.mark.parametrize(
    "index",
    [pd.Index([5, 6], name="mine"), pd.date_range("2020", periods=2, name="mine", freq="D")],
    ids=repr,
)
def test_the_name_of_an_index_that_comes_back_is_the_answers_own(index) -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"a": [1, 2]}, index=index)
    payload = signature.describe((frame,), {}, True).payload
    first, second = (
        signature.finish(payload, [(pd.DataFrame({"b": [3, 4]}), pd.Series([5, 6]))]) for _ in range(2)
    )
    for at, answer in enumerate((*first, *second)):
        assert_index_equal(answer.index, index)
        assert getattr(answer.index, "freq", None) == getattr(index, "freq", None)
        answer.index.name = f"changed {at}"
    assert frame.index.name == "mine"
    assert first[1].index.name == "changed 1"


def test_answers_are_private(way) -> None:
    signature = Signature(one)
    kept = pd.DataFrame({"a": [1.0, 2.0], "s": ["x", "y"]})
    first, second = signature.split(kept, [1, 1])
    first.loc[0, "a"] = 77.0
    first.columns.name = "mine"
    assert kept["a"].tolist() == [1.0, 2.0]
    assert second["a"].tolist() == [2.0]
    assert kept.columns.name is None
    assert second.columns.name is None


def test_what_a_frame_was_is_forgotten_when_it_changes() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"a": [1.0], "b": [2]})
    keys = [signature.describe((frame,), {}, True).key]
    frame["c"] = "x"
    keys.append(signature.describe((frame,), {}, True).key)
    frame["a"] = frame["a"].astype("float32")
    keys.append(signature.describe((frame,), {}, True).key)
    frame.columns = ["a", "b", "d"]
    keys.append(signature.describe((frame,), {}, True).key)
    frame.columns.name = "n"
    keys.append(signature.describe((frame,), {}, True).key)
    assert len(set(keys)) == 5


def test_codes_without_a_category_are_refused() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"c": pd.Categorical(["u", "v"])})
    call = signature.encode(signature.describe((frame,), {}, True).payload)
    for code in (2, 127, -2):
        with pytest.raises(InvalidPayload, match="out of the range of 2 categories"):
            signature.decode(call.key, [Fixed(1, np.array([0, code], dtype=np.int8).tobytes())], 2)


@pytest.mark.parametrize(
    "token",
    [
        '[[["nonsense"]],["<f8"]]',
        '[["range",0,1,1,["none"]],[["string","pyarrow-of-old","nan"]]]',
        '[["range",0,1,1,["none"]],[["category",0,["fixed","<i8",["zz"],["none"]]]]]',
        '[["range",0,1,1,["none"]],[["pandas","no such dtype"]]]',
        '[["range",0,2,1,["none"]],["<f8"]]',
        '[["range",0,1,0,["none"]],["<f8"]]',
        '[["multi",[]],["<f8"]]',
        '["a","b"]',
    ],
)
def test_keys_that_name_no_frame_are_refused(token) -> None:
    with pytest.raises(InvalidPayload):
        Signature(one).decode(f'[[["x",0,0]],[["frame",{token}]],null]'.encode(), [], 0)


@pytest.mark.parametrize("step", [1, -1, 1000])
def test_labels_that_only_claim_to_be_many_are_refused(step) -> None:
    """Categories are looked at one by one: a short message must not name a billion."""
    labels = f'["range",0,{step * (2**20 + 1)},{step},["none"]]'
    key = f'[[["x",0,0]],[["series",[["none"],["category",0,{labels}]]]],null]'
    with pytest.raises(InvalidPayload, match="at most 1048576 labels can travel"):
        Signature(one).decode(key.encode(), [Fixed(4, b"")], 0)


def test_text_that_is_none_is_refused() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"s": pd.array(["ab"], dtype="string")})
    call = signature.encode(signature.describe((frame,), {}, True).payload)
    with pytest.raises(InvalidPayload, match="UnicodeDecodeError"):
        signature.decode(call.key, [Var(b"\x02\0\0\0", b"\xff\xfe")], 1)


def test_columns_that_take_too_much_room_are_refused_before_they_travel() -> None:
    signature = Signature(one)
    frame = pd.DataFrame({"c": pd.Categorical([str(i) for i in range(200_000)])})
    with pytest.raises(InvalidPayload, match="categories"):
        signature.encode(signature.describe((frame,), {}, True).payload)


@pytest.mark.slow
def test_pandas_is_imported_only_when_it_arrives() -> None:
    script = """
import sys, numpy as np
from batching.signature import Signature
signature = Signature(lambda x: x)
for value in (np.ones(3), "text", [1]):
    call = signature.encode(signature.describe((value,), {}, False).payload)
    signature.decode(call.key, call.buffers, 1)
    signature.split([1], [1])
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)
