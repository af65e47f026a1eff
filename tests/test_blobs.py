"""One blob a row: lengths that fit, and pickles that are read as pickle's own would be."""

from __future__ import annotations

import datetime
import enum
import math
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching._native.blobs import cut_blobs, holds_instance, lengths_of, pickle_each, unpickle_each
from batching.errors import InvalidPayload
from batching.payloads import MISSING, Var, make_var, pickling, take_var

# --- lengths and blobs ------------------------------------------------------------------------

blobs = st.lists(st.none() | st.binary(max_size=20) | st.binary(min_size=4090, max_size=4100), max_size=6)


@given(blobs, st.sampled_from([bytes, bytearray, memoryview, lambda data: np.frombuffer(data, dtype="u1")]))
def test_blobs_cut_again_are_the_blobs(rows, buffer) -> None:
    var = make_var(rows)
    again = cut_blobs(buffer(bytes(var.data)), var.lengths, len(rows))
    assert [blob if blob is None else bytes(blob) for blob in again] == rows
    assert all(type(blob) is memoryview for blob in again if blob is not None and len(blob) >= 4096)


def test_large_blobs_are_views_and_small_ones_are_not() -> None:
    data = bytearray(5_003)
    small, large = cut_blobs(data, struct.pack("<2I", 3, 5_000), 2)
    data[:] = b"x" * 5_003
    assert small == bytes(3)
    assert large == b"x" * 5_000


def test_the_size_of_a_blob_is_in_bytes_whatever_its_items() -> None:
    assert lengths_of([memoryview(np.zeros(3)), b"ab", None]) == struct.pack("<3I", 24, 2, MISSING)
    one = make_var([np.zeros(3)])
    assert bytes(take_var(iter([one]), 1)[0]) == bytes(24)


@pytest.mark.parametrize(
    ("lengths", "data", "rule"),
    [
        ((1, 2), b"ab", "add up to 3 bytes, got 2"),
        ((1, 0), b"ab", "add up to 1 bytes, got 2"),
        ((1,), b"a", "2 rows need lengths of 8 bytes, got 4"),
        ((1, 1, 0), b"ab", "2 rows need lengths of 8 bytes, got 12"),
        # In 32 bits the sum would be right.
        ((MISSING - 1, 4), b"ab", f"add up to {MISSING + 3} bytes, got 2"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, data, rule) -> None:
    with pytest.raises(InvalidPayload, match=rule):
        take_var(iter([Var(struct.pack(f"<{len(lengths)}I", *lengths), data)]), 2)


def test_a_row_too_large_for_its_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four GiB that nothing is ever stored in.
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, dtype="u1"), shape=(MISSING,), strides=(0,))
    with pytest.raises(InvalidPayload, match=f"at most {MISSING - 1} bytes, got {MISSING}"):
        lengths_of([huge])


# --- pickles ----------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**63)])
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["\ud800", "é" * 1000, "x" * 1024, "x" * 1025, "__main__"])
    | st.binary(max_size=300)
    | st.sampled_from([Colour.RED, Text("t"), np.float64(1.5), datetime.date(2020, 1, 1), 1 + 2j, {1}])
)
keys = st.text(max_size=3) | st.integers() | st.none() | st.tuples(st.integers(), st.text(max_size=2))


@st.composite
def tangles(draw: Any) -> Any:
    """Containers of atoms and of each other, of which some stand in several places, or in themselves."""
    made: list[Any] = [draw(atoms)]
    for _ in range(draw(st.integers(0, 6))):
        parts = draw(st.lists(st.sampled_from(range(len(made))), max_size=4))
        items = [made[at] for at in parts]
        match draw(st.sampled_from(["list", "tuple", "dict", "atom", "cycle"])):
            case "list":
                made.append(items)
            case "tuple":
                made.append(tuple(items))
            case "dict":
                made.append(dict(zip(draw(st.lists(keys, min_size=4, max_size=4)), items, strict=False)))
            case "atom":
                made.append(draw(atoms))
            case "cycle":
                items.append(items)
                made.append(items)
        if draw(st.booleans()):
            # So that nothing but its parent refers to what was made before.
            made = made[-1:]
    return made.pop()


def picture(value: Any, seen: dict[int, int]) -> Any:
    """A value by type and content, with the same number wherever the same container stands."""
    if isinstance(value, (list, dict, tuple)):
        if id(value) in seen:
            return "again", seen[id(value)]
        # Whether an equal tuple of plain things is the same one is nobody's business.
        number = len(seen) if not isinstance(value, tuple) else -1
        if number >= 0:
            seen[id(value)] = number
        items = value.items() if isinstance(value, dict) else value
        return type(value), number, [picture(item, seen) for item in items]
    return type(value), "nan" if isinstance(value, float) and math.isnan(value) else repr(value)


@given(tangles())
def test_a_pickle_is_read_as_pickles_own(value) -> None:
    ours, theirs = pickle.loads(pickling.dumps(value)), pickle.loads(pickle.dumps(value, 5))
    assert picture(ours, {}) == picture(theirs, {})


@pytest.mark.parametrize("make", [list, lambda inner: {"key": inner[0]}, tuple])
def test_depth_without_end_ends_as_pickles_own(make) -> None:
    value: Any = []
    for _ in range(40):
        value = make([value])
    assert pickling.loads(pickling.dumps(value)) == value
    for _ in range(100_000):
        value = make([value])
    with pytest.raises(InvalidPayload, match=r"deep recursion|RecursionError"):
        pickling.dumps(value)
    while value:
        value = value["key"] if isinstance(value, dict) else value[0]


def test_a_text_that_stands_in_many_places_is_written_once() -> None:
    text = "long" * 200
    assert len(pickling.dumps([text] * 100)) < 2_000


@pytest.mark.parametrize(
    ("value", "is_plain"),
    [
        ({"id": 7, "name": "é", "tags": ["a", b"b"], "score": 0.5, "box": (1, (None, ()))}, True),
        (["x" * 100_000], False),
        ([list(range(50_000))], False),
        (Colour.RED, False),
        ({"when": datetime.date(2020, 1, 1)}, False),
    ],
)
def test_plain_values_are_pickled_without_pickle(value, is_plain) -> None:
    asked: list[Any] = []

    def dumps(value: Any, protocol: int, *, buffer_callback: Any) -> bytes:
        asked.append(value)
        return pickle.dumps(value, protocol, buffer_callback=buffer_callback)

    streams = pickle_each([value], dumps, lambda buffer: True, [], lambda value, stream: b"")
    assert pickle.loads(streams[0]) == value
    assert asked == ([] if is_plain else [value])


def test_what_is_unusual_is_told_with_its_pickle() -> None:
    large: list[Any] = []
    told: list[Any] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        large.append(buffer)
        return False

    def unusual(value: Any, stream: bytes | None) -> bytes:
        told.append((type(value), stream is None, len(large)))
        large.clear()
        return b"unusual"

    values = [1, np.zeros(3), (i for i in ()), {"__main__": {1}}, {2}]
    streams = pickle_each(values, pickle.dumps, keep, large, unusual)
    assert told == [(np.ndarray, False, 1), (type(values[2]), True, 0), (dict, False, 0)]
    assert [stream == b"unusual" for stream in streams] == [False, True, True, True, False]


@pytest.mark.parametrize("blob", [None, b"", b"\x02[]", memoryview(b"\x80"), bytearray(b"\x80")])
def test_only_bytes_that_begin_as_a_pickle_are_read_as_one(blob) -> None:
    assert unpickle_each([b"\x80.", blob], len, lambda odd: ("odd", odd)) == [2, ("odd", blob)]


def test_a_missing_value_is_named_as_such() -> None:
    for blob in (None, b""):
        with pytest.raises(InvalidPayload, match="a value is missing"):
            pickling.loads_each([blob])


def test_instances_are_found_by_their_type() -> None:
    assert holds_instance([1, KeyError()], Exception)
    assert not holds_instance([1, KeyError, KeyboardInterrupt()], Exception)
    assert not holds_instance([], Exception)
