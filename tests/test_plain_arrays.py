"""The short way of arguments and results that are one plain ndarray: as the signature would, or not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("batching._native.plane", exc_type=ImportError)

from batching._native import batches, link
from batching._native.rows import BufferPool
from batching.payloads import Fixed, Var
from batching.signature import Signature

SIGNATURE = Signature(lambda x: x)
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def key_of(array: np.ndarray) -> bytes:
    return SIGNATURE.encode(SIGNATURE.describe((array,), {}, True).payload).key


def buffer_of(array: np.ndarray) -> np.ndarray:
    """The bytes of its rows in memory of their own, as a batch comes."""
    return np.frombuffer(bytearray(array.tobytes()), dtype=np.uint8)


def message_of(address: int) -> list[bytes]:
    try:
        return link.frames_of(address)
    finally:
        link.drop(address)


@pytest.fixture
def arrays():
    made = batches.PlainArrays(Fixed)
    made.learn_argument(key_of(ROWS), ROWS)
    made.learn_result(b"key", ROWS)
    return made


def test_an_argument_of_a_known_key_is_an_array_over_its_buffer(arrays):
    buffer = buffer_of(ROWS)
    buffers = [Fixed(12, buffer)]
    (decoded,), _ = SIGNATURE.decode(key_of(ROWS), buffers, 4)
    argument = arrays.argument(key_of(ROWS), buffers, 4)
    assert buffers == []  # nobody but the model refers to it
    assert (argument.dtype, argument.shape) == (decoded.dtype, decoded.shape)
    assert argument.tolist() == ROWS.tolist()
    assert argument.flags.writeable
    assert argument.flags.aligned
    assert np.shares_memory(argument, buffer)


@pytest.mark.parametrize(
    ("key", "buffers", "rows"),
    [
        (b"other", [Fixed(12, buffer_of(ROWS))], 4),
        (key_of(ROWS), [Fixed(12, buffer_of(ROWS))], 3),
        (key_of(ROWS), [Fixed(12, buffer_of(ROWS[:0]))], 0),
        (key_of(ROWS), [Fixed(6, buffer_of(ROWS))], 8),
        (key_of(ROWS), [Fixed(12, buffer_of(ROWS)), Fixed(12, buffer_of(ROWS))], 4),
        (key_of(ROWS), [], 4),
        (key_of(ROWS), [Var(np.full(4, 12, np.uint32), buffer_of(ROWS))], 4),
        (key_of(ROWS), [Fixed(12, np.zeros(49, np.uint8)[1:])], 4),  # not aligned
    ],
)
def test_what_does_not_fit_its_key_is_left_to_the_signature(arrays, key, buffers, rows):
    before = len(buffers)
    assert arrays.argument(key, buffers, rows) is None
    assert len(buffers) == before


@pytest.mark.parametrize("rows", [4, 3])  # the model was given one more, as padding
def test_a_result_makes_the_message_that_the_signature_makes(arrays, rows):
    result = ROWS * 2
    encoded = SIGNATURE.encode_result(result, 4)
    expected = message_of(batches.new_result(9, rows, b"key", encoded.buffers, Var, BufferPool(), False))
    for _ in range(2):  # its packet is used again
        assert message_of(arrays.result(9, rows, 4, result)) == expected


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "result",
    [
        ROWS[:3],  # not as many rows as the model was given
        ROWS.astype(np.float64),
        ROWS.reshape(4, 3, 1),
        ROWS[:, :2],
        np.asfortranarray(ROWS),
        ROWS.astype(">f4"),
        ROWS.astype(object),
        ROWS.view(Subclass),
        np.zeros((4, 0), np.float32),
        np.float32(1.0),
        ROWS.tolist(),
        (ROWS,),
    ],
)
def test_a_result_that_is_not_known_is_left_to_the_signature(arrays, result):
    assert arrays.result(9, 4, 4, result) == 0


def test_what_is_no_plain_array_is_not_learned(arrays):
    for value in (
        ROWS.astype(object),
        ROWS.astype(">f4"),
        ROWS.astype("M8[s]"),
        np.asfortranarray(ROWS),
        [1],
    ):
        arrays.learn_result(b"other", value)
        arrays.learn_argument(b"other", value)
        assert arrays.result(9, 4, 4, value) == 0
    assert arrays.argument(b"other", [Fixed(12, buffer_of(ROWS))], 4) is None


def test_large_arrays_are_left_to_those_who_know_to_whom_they_belong(arrays):
    large = np.zeros((1 << 15, 3), np.float32)
    assert arrays.result(9, len(large), len(large), large) == 0
    assert arrays.argument(key_of(ROWS), [Fixed(12, buffer_of(large))], len(large)) is None
