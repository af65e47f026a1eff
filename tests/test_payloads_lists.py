"""Lists: any element, by reference in one process, pickled each by itself between two."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from payload_models import Point
from strategies import elements, plain, same_element
from wire import joined, sliced

from batching.errors import InvalidPayload, RunnerError
from batching.payloads import Var, pickling
from batching.signature import InvalidResult, Signature


class Stubborn(Exception):
    """Can be pickled, and not made again of its pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def one(x): ...


def through_wire(signature: Signature, calls: list[list[Any]], **kwargs: bool) -> list[Any]:
    encoded = [signature.encode(signature.describe((call,), {}, True).payload, **kwargs) for call in calls]
    assert len({call.key for call in encoded}) == 1
    [batch], _ = signature.decode(encoded[0].key, joined(encoded), sum(map(len, calls)), **kwargs)
    return batch


@given(st.lists(st.lists(elements(), max_size=3), min_size=1, max_size=3))
def test_elements_arrive_as_they_left(calls) -> None:
    signature = Signature(one)
    assert same_element(through_wire(signature, calls), [element for call in calls for element in call])
    result = signature.encode_result(calls[0], len(calls[0]))
    [each] = sliced(result, [len(calls[0])])
    assert same_element(signature.decode_result(*each), calls[0])


@given(st.lists(st.lists(plain(), max_size=3), min_size=1, max_size=3))
def test_plain_values_need_no_pickle(calls) -> None:
    batch = through_wire(Signature(one), calls, allow_pickle=False)
    assert repr(batch) == repr([element for call in calls for element in call])


@pytest.mark.parametrize("element", [Point(1, []), [Point(1, [])], print, np.ones(2), ValueError("x")])
def test_other_values_are_refused_where_pickle_is_not_allowed(element) -> None:
    signature = Signature(one)
    payload = signature.describe(([element],), {}, True).payload
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.encode(payload, allow_pickle=False)
    call = signature.encode(payload)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.decode(call.key, call.buffers, 1, allow_pickle=False)


def test_plain_and_pickled_elements_are_joined() -> None:
    signature = Signature(one)
    payload = signature.describe((["a"],), {}, True).payload
    calls = [signature.encode(payload), signature.encode(payload, allow_pickle=False)]
    [batch], _ = signature.decode(calls[0].key, joined(calls), 2)
    assert batch == ["a", "a"]


def test_in_one_process_elements_are_handed_on_by_reference() -> None:
    signature = Signature(one)
    elements = [object(), lambda: None]
    payload = signature.describe((elements,), {}, True).payload
    [batch], _ = signature.join([(payload, 0, 2)])
    assert all(mine is theirs for mine, theirs in zip(batch, elements, strict=True))


def test_large_buffers_inside_elements_are_views_of_what_arrived() -> None:
    element = {"image": np.arange(10_000), "more": [np.ones(2_000), bytearray(b"x" * 10_000)]}
    blob = bytearray(pickling.dumps(element))
    again = pickling.loads(blob)
    assert np.array_equal(again["image"], element["image"])
    assert again["more"][1] == element["more"][1]
    assert again["image"].flags.writeable
    received = np.frombuffer(blob, dtype=np.uint8)
    assert np.shares_memory(again["image"], received)
    assert again["image"].__array_interface__["data"][0] % 8 == 0
    del received


def test_large_buffers_are_writable_also_from_read_only_memory() -> None:
    again = pickling.loads(pickling.dumps(np.zeros(10_000)))
    again[0] = 1
    assert again[0] == 1


class Counted:
    """Counts how often it is pickled."""

    def __init__(self, content) -> None:
        self.content = content
        self.pickled = 0

    def __reduce__(self):
        self.pickled += 1
        return Counted, (self.content,)


@pytest.mark.parametrize("content", [np.ones(2_000), b"x" * 10_000, [np.ones(300)] * 20, "small"])
def test_elements_are_pickled_once(content) -> None:
    elements = [Counted(content) for _ in range(3)]
    blobs = pickling.dumps_each(elements)
    assert [element.pickled for element in elements] == [1, 1, 1]
    assert all(np.array_equal(again.content, content) for again in pickling.loads_each(blobs))


def test_a_large_element_among_small_ones_still_leaves_its_buffers_outside() -> None:
    elements = [Counted("small"), Counted(np.ones(2_000)), Counted("small")]
    blobs = list(map(bytearray, pickling.dumps_each(elements)))
    assert [element.pickled for element in elements] == [1, 1, 1]
    again = pickling.loads_each(blobs)
    assert np.shares_memory(again[1].content, np.frombuffer(blobs[1], dtype=np.uint8))


def test_small_and_strided_buffers_stay_inside_the_pickle() -> None:
    for array in (np.ones(3), np.ones((200, 200))[::2, ::2], np.ones((90, 90), order="F")):
        again = pickling.loads(pickling.dumps(array))
        assert np.array_equal(again, array)


def test_what_cannot_be_pickled_is_the_callers_fault_and_named() -> None:
    signature = Signature(one)
    payload = signature.describe(((i for i in ()),), {}, False).payload
    with pytest.raises(InvalidPayload, match="generator"):
        signature.encode(payload)


@pytest.mark.slow
@pytest.mark.parametrize("make", ["lambda: 42", "Local()", "make()"])
def test_what_was_defined_in_main_reaches_another_process(make) -> None:
    code = f"""
import sys
from batching.payloads import pickling
class Local:
    def __call__(self): return 42
def make():
    def inner(): return 42
    return inner
sys.stdout.buffer.write(pickling.dumps({make}))
"""
    blob = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, check=True, timeout=60
    ).stdout
    assert pickling.loads(blob)() == 42


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x80\x05", b"\x01", b"\x02", b"\x01" + bytes(7)]))
def test_garbage_is_refused_as_an_invalid_payload(noise, head) -> None:
    signature = Signature(one)
    key = signature.encode(signature.describe((["a"],), {}, True).payload).key
    blob = head + noise
    lengths = len(blob).to_bytes(4, "little")
    with pytest.raises(InvalidPayload):
        signature.decode(key, [Var(lengths, blob)], 1, allow_pickle=False)


@pytest.mark.parametrize("blob", [b"", b"\x01", b"\x01" + bytes(23), pickling.dumps(np.zeros(9_000))[:-1000]])
def test_blobs_that_are_cut_short_are_refused(blob) -> None:
    signature = Signature(one)
    key = signature.encode(signature.describe((["a"],), {}, True).payload).key
    with pytest.raises(InvalidPayload):
        signature.decode(key, [Var(len(blob).to_bytes(4, "little"), blob)], 1)


def test_an_exception_in_a_row_arrives_as_itself_if_it_can() -> None:
    signature = Signature(one)
    call = signature.describe(("x",), {}, False)
    result = signature.encode_result(["fine", KeyError("k"), Stubborn(1, 2)], 3)
    parts = [signature.decode_result(*each) for each in sliced(result, [1, 1, 1])]
    assert signature.finish(call.payload, parts[:1]) == "fine"
    with pytest.raises(KeyError, match="k"):
        signature.finish(call.payload, parts[1:2])
    with pytest.raises(RunnerError, match="Stubborn: 1 and 2") as caught:
        signature.finish(call.payload, parts[2:])
    assert caught.value.type_name == "Stubborn"
    assert caught.value.message == "1 and 2"


@pytest.mark.parametrize("allow_pickle", [True, False])
def test_a_row_that_cannot_travel_or_failed_is_its_callers_error_with_and_without_pickle(
    allow_pickle,
) -> None:
    signature = Signature(one)
    call = signature.describe(("x",), {}, False)
    rows = ["fine", (i for i in ()), KeyError("k"), {"also": "fine"}]
    result = signature.encode_result(rows, 4, allow_pickle=allow_pickle)
    parts = [
        signature.decode_result(*each, allow_pickle=allow_pickle) for each in sliced(result, [1, 1, 1, 1])
    ]
    assert [signature.finish(call.payload, [parts[at]]) for at in (0, 3)] == [rows[0], rows[3]]
    with pytest.raises(InvalidResult, match=r"cannot travel: .*generator"):
        signature.finish(call.payload, [parts[1]])
    with pytest.raises(KeyError if allow_pickle else RunnerError, match="k"):
        signature.finish(call.payload, [parts[2]])


def test_what_cannot_travel_in_an_array_is_everybodys_error() -> None:
    rows = np.empty(2, dtype=object)
    rows[:] = ["fine", (i for i in ())]
    with pytest.raises(InvalidResult, match=r"cannot travel: .*generator"):
        Signature(one).encode_result(rows, 2)


class Rows(list):
    __slots__ = ()


def test_a_list_of_a_subclass_is_a_list() -> None:
    signature = Signature(one)
    assert through_wire(signature, [Rows([1, 2]), [3]]) == [1, 2, 3]
    result = signature.encode_result(Rows([1, KeyError()]), 2)
    [first, _] = [signature.decode_result(*each) for each in sliced(result, [1, 1])]
    assert first == [1]
    assert [type(part) for part in signature.split(Rows([1, 2]), [1, 1])] == [list, list]
