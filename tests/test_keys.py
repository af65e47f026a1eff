"""Only calls that can be joined have equal keys: one test for each axis, in one process and on the wire."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, same_array

from batching.errors import InvalidPayload
from batching.payloads.canonical import dumps, freeze, loads, thaw
from batching.payloads.padding import Pad
from batching.signature import Signature


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


def model(x, y=None, *, threshold=0.5, **more): ...


def distinct(calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], batched: bool, **options: Any) -> None:
    """Every call has a key of its own, in a process and in bytes, and the same key each time."""
    signature = Signature(model, **options)
    in_process, on_wire = [], []
    for args, kwargs in calls:
        first, second = (signature.describe(args, kwargs, batched) for _ in range(2))
        assert first.key == second.key
        assert hash(first.key) == hash(second.key)
        encoded = signature.encode(first.payload).key
        assert encoded == Signature(model, **options).encode(second.payload).key
        in_process.append(first.key)
        on_wire.append(encoded)
    assert len(set(in_process)) == len(in_process)
    assert len(set(on_wire)) == len(on_wire)


def items(*values: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [((value,), {}) for value in values]


def test_kind() -> None:
    distinct(items(np.ones(1), [1.0], pd.Series([1.0]), pd.DataFrame({"a": [1.0]})), batched=True)


def test_dtype() -> None:
    dtypes = [
        "i4", "i8", "u4", "f4", "f8", ">f8", "f2", "?", "i1", "S1", "S2", "U1", "M8[s]", "M8[ms]", "M8[D]",
        "m8[s]", "V1", "O", [("a", "i4")], [("b", "i4")], [("a", "i8")], [("a", "i4", (1,))],
        {"names": ["a"], "formats": ["i4"], "offsets": [4]},
        {"names": ["a"], "formats": ["i4"], "itemsize": 8},
    ]  # fmt: skip
    distinct(items(*[np.zeros(2, dtype=dtype) for dtype in dtypes]), batched=True)


def test_trailing_shape() -> None:
    shapes = [(2,), (2, 1), (2, 2), (2, 1, 1), (2, 0), (2, 0, 3)]
    distinct(items(*[np.zeros(shape) for shape in shapes]), batched=True)


def test_rows_and_layout_are_no_axis() -> None:
    signature = Signature(model)
    arrays = [np.ones((3, 2)), np.ones((0, 2)), np.ones((2, 4), order="F")[:, ::2], np.ones((2, 4))[:, 2:]]
    assert len({signature.describe((array,), {}, True).key for array in arrays}) == 1
    assert signature.describe((np.ones(2),), {}, False).key == signature.describe((arrays[0],), {}, True).key


def test_column_names() -> None:
    headers = [
        ["a", "b"], ["b", "a"], ["a", "c"], ["a", "a"], [0, 1], [0.0, 1.0], [False, True],
        pd.RangeIndex(2), pd.RangeIndex(2, name="n"), pd.Index(["a", "b"], name="n"),
        pd.Index(["a", "b"], dtype="string"), pd.Index(["a", 1], dtype=object),
        pd.Index(["a", True], dtype=object),
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2)]), pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["u", "v"]), pd.CategoricalIndex(["a", "b"]),
        pd.date_range("2020", periods=2),
    ]  # fmt: skip
    frames = []
    for header in headers:
        frame = pd.DataFrame({0: [1], 1: [2]})
        frame.columns = header if isinstance(header, pd.Index) else pd.Index(header)
        frames.append(frame)
    distinct(items(*frames), batched=True)


def test_number_of_columns() -> None:
    distinct(items(*[pd.DataFrame(np.ones((2, width))) for width in range(4)]), batched=True)


COLUMN_DTYPES = [
    "int64", "int32", "Int64", "Int32", "float64", "Float64", "bool", "boolean", object, "string",
    "datetime64[ns]", "datetime64[s]", "datetime64[ns, UTC]", "datetime64[ns, Europe/Berlin]",
    "datetime64[ns, Europe/Paris]", "datetime64[ns, UTC+01:00]", "timedelta64[ns]", "period[M]", "period[D]",
]  # fmt: skip


def test_column_dtypes() -> None:
    series = [pd.Series([], dtype=dtype) for dtype in COLUMN_DTYPES]
    distinct(items(*[pd.DataFrame({"a": each}) for each in series]), batched=True)
    distinct(items(*series), batched=True)


def test_categories() -> None:
    dtypes = [
        pd.CategoricalDtype(categories, ordered)
        for categories in (["a", "b"], ["b", "a"], ["a", "b", "c"], [1, 2], [1.0, 2.0], [])
        for ordered in (False, True)
    ]
    series = [pd.Series([], dtype=dtype) for dtype in dtypes]
    distinct(items(*[pd.DataFrame({"a": each}) for each in series]), batched=True)
    distinct(items(*series), batched=True)


def test_name_of_a_series() -> None:
    names = [None, "a", "b", 1, 1.0, True, ("a", 1)]
    distinct(items(*[pd.Series([1], name=name) for name in names]), batched=True)


def test_argument_names() -> None:
    distinct(
        [
            (([1],), {}),
            (([1], [1]), {}),
            (([1],), {"threshold": [1]}),
            (([1],), {"other": [1]}),
            (([1],), {"another": [1]}),
            (([1], [1]), {"other": [1]}),
        ],
        batched=True,
    )


def test_arguments_exchanged() -> None:
    distinct([(([1], np.ones(1)), {}), ((np.ones(1), [1]), {})], batched=True)


STATIC_VALUES = [
    1, True, 1.0, 0.0, -0.0, 0, False, None, float("nan"), float("inf"), "1", b"1", "", b"",
    1 + 0j, complex(1, -0.0),
    np.int64(1), np.int32(1), np.float64(1), np.float32(1), np.bool_(True), np.str_("1"),
    (1,), [1], {1}, frozenset([1]), (1.0,), (True,), ((1,),), [(1,)], {"a": 1}, {"a": True}, {"a": 1, "b": 2},
    {"b": 2, "a": 1}, Mode.FAST, Mode.SLOW, Mode, range(3), 10**30, "none", ("none",), ("int", "0x1"),
]  # fmt: skip


def test_static_values_by_type_and_value() -> None:
    calls = [((1,), {"threshold": value}) for value in STATIC_VALUES]
    distinct(calls, batched=False, static_args=("threshold",))


@pytest.mark.parametrize("value", STATIC_VALUES, ids=repr)
def test_static_values_arrive_as_they_are(value) -> None:
    again = thaw(loads(dumps(freeze(value))))
    assert type(again) is type(value)
    assert repr(again) == repr(value)


def test_equal_static_values_are_joined() -> None:
    signature = Signature(model, static_args=["threshold"])
    pairs = [
        (float("nan"), -float("nan")),
        ("ab", "".join(["a", "b"])),
        ([1, [2]], [1, [2]]),
        ({1, 2, 3}, {3, 2, 1}),
        (0.5, 0.5),
    ]
    for one, other in pairs:
        keys = {signature.describe((1,), {"threshold": value}, False).key for value in (one, other)}
        assert len(keys) == 1
    assert signature.describe((1,), {}, False).key == signature.describe((1,), {"threshold": 0.5}, False).key


def test_static_values_that_cannot_be_pickled_stay_in_this_process() -> None:
    signature = Signature(model, static_args=["threshold"])
    payload = signature.describe((1,), {"threshold": (i for i in ())}, False).payload
    with pytest.raises(InvalidPayload, match="generator"):
        signature.encode(payload)


def test_static_and_batched_values_are_not_mistaken() -> None:
    static = Signature(model, static_args=["y"]).describe(("a", "b"), {}, False).key
    batched = Signature(model).describe(("a", "b"), {}, False).key
    assert static != batched


def test_bucket() -> None:
    buckets: list[Any] = [None, 0, False, 0.0, -0.0, "0", (0,), ("several", 0), Mode.FAST, Mode.SLOW]
    calls = items(*range(len(buckets)))
    distinct(calls, batched=False, group_by=lambda item: buckets[item])


def test_padded_length_is_no_axis_and_the_rest_is() -> None:
    pad = Pad()
    distinct(
        items(*[np.ones((2, *rest), dtype=d) for rest in ((), (1,), (2,)) for d in "fd"]), False, pad=pad
    )
    signature = Signature(model, pad=pad)
    assert len({signature.describe((np.ones((n, 2)),), {}, False).key for n in range(4)}) == 1


@given(batches(max_rows=2), batches(max_rows=2))
def test_keys_are_equal_exactly_if_dtype_and_trailing_shape_are(one, other) -> None:
    signature = Signature(model)
    first, second = (signature.describe((batch,), {}, True) for batch in (one, other))
    fits = one.dtype == other.dtype and one.shape[1:] == other.shape[1:]
    assert (first.key == second.key) == fits
    assert (signature.encode(first.payload).key == signature.encode(second.payload).key) == fits
    if fits:
        [batch], _ = signature.join([(first.payload, 0, first.rows), (second.payload, 0, second.rows)])
        assert same_array(batch[: len(one)], one)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=6,
)


@given(values)
def test_frozen_values_are_hashable_and_come_back(value) -> None:
    frozen = freeze(value)
    hash(frozen)
    again = thaw(loads(dumps(frozen)), allow_pickle=False)
    assert repr(again) == repr(value)
    assert freeze(again) == frozen


def test_the_signature_is_known_to_another_process() -> None:
    def run_batch(x, /, y, scale=2, *rest, mode=Mode.FAST, **more): ...

    signature = Signature(run_batch, static_args=("scale", "mode"), pad={"y": Pad(-1.0)})
    twin = Signature.from_bytes(signature.to_bytes())
    for args, kwargs in [
        ((1, np.ones(2)), {}),
        ((1, np.ones(3)), {"extra": 5, "mode": Mode.SLOW}),
        ((1, np.ones((2, 2)), 3, 4), {}),
    ]:
        mine, theirs = signature.describe(args, kwargs, False), twin.describe(args, kwargs, False)
        assert mine.key == theirs.key
        assert signature.encode(mine.payload).key == twin.encode(theirs.payload).key
    with pytest.raises(InvalidPayload):
        twin.describe((1,), {}, False)


def test_a_bucket_is_added_where_the_class_is_known() -> None:
    signature = Signature(model, group_by=len)
    twin = Signature.from_bytes(signature.to_bytes())
    assert twin.grouped
    call = twin.encode(twin.describe(("abc",), {}, False).payload)
    key = signature.regroup(call.key, call.buffers, call.rows)
    mine = signature.encode(signature.describe(("abc",), {}, False).payload)
    assert key == mine.key != call.key
    assert signature.regroup(mine.key, mine.buffers, mine.rows) == mine.key


def test_the_key_of_a_result_is_none_of_a_call() -> None:
    signature = Signature(model)
    result = signature.encode_result([1], 1)
    assert signature.decode_result(result.key, result.buffers, 1) == [1]
    with pytest.raises(InvalidPayload, match="not a key"):
        signature.decode(result.key, result.buffers, 1)


def test_keys_without_end_do_not_take_memory_without_end() -> None:
    signature = Signature(model, static_args=["threshold"])
    sizes = []
    for number in range(40):
        call = signature.describe(([],), {"threshold": str(number) * 500_000}, True)
        encoded = signature.encode(call.payload)
        signature.decode(encoded.key, encoded.buffers, 0)
        sizes.append(sum(len(key[0]) for key in signature._keys._read._known))
    assert max(sizes) <= 1 << 24


@pytest.mark.parametrize("data", [b"", b"[]", b"[1,[],0]", b'[[[["x",9,null]],[],[]],[],0]', b"\xff"])
def test_what_is_no_signature_is_refused(data) -> None:
    with pytest.raises(InvalidPayload):
        Signature.from_bytes(data)
