"""numpy: every dtype and layout is joined, cut and sent bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, layouts, same_array
from wire import joined, sliced

from batching.errors import InvalidPayload
from batching.payloads import Fixed, Pad, Var
from batching.signature import Signature


def one(x): ...


def drawn_parts(batch: np.ndarray, data: st.DataObject) -> list[np.ndarray]:
    cut = data.draw(st.integers(0, len(batch)))
    return [data.draw(layouts(batch[:cut])), data.draw(layouts(batch[cut:]))]


@given(batches(), st.data())
def test_calls_are_joined_to_the_array_they_were_cut_from(batch, data) -> None:
    signature = Signature(one)
    calls = [signature.describe((part,), {}, True) for part in drawn_parts(batch, data)]
    assert len({call.key for call in calls}) == 1
    [joined_batch], _ = signature.join([(call.payload, 0, call.rows) for call in calls])
    assert same_array(joined_batch, batch)
    assert joined_batch.flags.c_contiguous
    assert joined_batch.flags.writeable
    for part, call in zip(signature.split(joined_batch, [c.rows for c in calls]), calls, strict=True):
        assert same_array(signature.finish(call.payload, [part]), call.payload.batches[0][1])


@given(batches(), st.data())
def test_calls_from_the_wire_are_the_array_they_were_cut_from(batch, data) -> None:
    signature = Signature(one)
    parts = drawn_parts(batch, data)
    described = [signature.describe((part,), {}, True) for part in parts]
    calls = [signature.encode(call.payload) for call in described]
    assert len({call.key for call in calls}) == 1
    [decoded], _ = signature.decode(calls[0].key, joined(calls), len(batch))
    assert same_array(decoded, batch)
    assert decoded.flags.writeable
    assert decoded.flags.aligned
    result = signature.encode_result(decoded, len(batch))
    for each, call, part in zip(sliced(result, [len(p) for p in parts]), described, parts, strict=True):
        answer = signature.finish(call.payload, [signature.decode_result(*each)])
        assert same_array(answer, part)
        assert answer.flags.writeable


@given(batches(max_rows=3))
def test_items_are_rows_and_come_back_as_such(batch) -> None:
    signature = Signature(one)
    for row in range(len(batch)):
        item = batch[row, ...]
        call = signature.describe((item,), {}, False)
        [joined_batch], _ = signature.join([(call.payload, 0, 1)])
        assert same_array(joined_batch, batch[row : row + 1])
        answer = signature.finish(call.payload, signature.split(joined_batch, [1]))
        if item.ndim or not batch.dtype.hasobject:
            assert same_array(np.asarray(answer, dtype=batch.dtype), item)


@pytest.mark.parametrize(
    "dtype", ["?", "f2", ">i8", "c16", "M8[ns]", "S5", "U3", "V7", [("a", "i4"), ("b", "U2", (2,))]]
)
def test_only_objects_need_pickle(dtype) -> None:
    signature = Signature(one)
    batch = np.zeros((2, 3), dtype=dtype)
    [buffer] = signature.encode(signature.describe((batch,), {}, True).payload, allow_pickle=False).buffers
    assert isinstance(buffer, Fixed)
    assert buffer.row_bytes == 3 * batch.dtype.itemsize


def test_objects_go_row_by_row_through_pickle() -> None:
    signature = Signature(one)
    payload = signature.describe((np.array([1, "a", None], dtype=object),), {}, True).payload
    call = signature.encode(payload)
    assert isinstance(call.buffers[0], Var)
    for refused in (
        lambda: signature.encode(payload, allow_pickle=False),
        lambda: signature.decode(call.key, call.buffers, 3, allow_pickle=False),
    ):
        with pytest.raises(InvalidPayload, match=r"pickle is not allowed.*object"):
            refused()


def test_variable_width_strings_survive() -> None:
    signature = Signature(one)
    batch = np.array(["a", "long" * 100, ""], dtype=np.dtypes.StringDType())
    call = signature.encode(signature.describe((batch,), {}, True).payload)
    [decoded], _ = signature.decode(call.key, call.buffers, 3)
    assert decoded.dtype == batch.dtype
    assert decoded.tolist() == batch.tolist()
    [again], _ = signature.join([(signature.describe((batch,), {}, True).payload, 1, 2)])
    assert again.tolist() == batch.tolist()[1:]


def test_a_memmap_is_an_array(tmp_path) -> None:
    mapped = np.memmap(tmp_path / "rows", dtype="f4", mode="w+", shape=(3, 2))
    mapped[...] = np.arange(6).reshape(3, 2)
    signature = Signature(one)
    whole = signature.describe((mapped,), {}, True)
    item = signature.describe((mapped[1],), {}, False)
    assert whole.key == item.key
    [batch], _ = signature.join([(whole.payload, 0, 3), (item.payload, 0, 1)])
    assert type(batch) is np.ndarray
    assert batch.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3]]
    assert type(signature.split(mapped, [3])[0]) is np.ndarray


def test_a_zero_row_call_is_joined_like_any_other() -> None:
    signature = Signature(one)
    calls = [signature.describe((np.ones((rows, 2)),), {}, True) for rows in (0, 2, 0)]
    [batch], _ = signature.join([(call.payload, 0, call.rows) for call in calls])
    assert batch.shape == (2, 2)
    assert [len(part) for part in signature.split(batch, [0, 2, 0])] == [0, 2, 0]
    [alone], _ = signature.join([(calls[0].payload, 0, 0)])
    assert alone.shape == (0, 2)


def test_writable_buffers_are_used_as_they_are_and_others_copied() -> None:
    signature = Signature(one)
    call = signature.encode(signature.describe((np.arange(4.0),), {}, True).payload)
    data = bytearray(call.buffers[0].data)
    [batch], _ = signature.decode(call.key, [Fixed(8, data)], 4)
    batch[0] = 9
    assert np.frombuffer(data)[0] == 9
    [batch], _ = signature.decode(call.key, [Fixed(8, bytes(data))], 4)
    batch[0] = 5
    assert np.frombuffer(data)[0] == 9


@pytest.mark.parametrize(
    ("buffers", "rows"),
    [
        ([], 2),
        ([Fixed(8, bytes(16)), Fixed(8, bytes(16))], 2),
        ([Fixed(4, bytes(16))], 4),
        ([Fixed(8, bytes(15))], 2),
        ([Fixed(8, bytes(16))], 3),
        ([Var(bytes(8), b"")], 2),
    ],
)
def test_buffers_that_do_not_fit_the_key_are_refused(buffers, rows) -> None:
    signature = Signature(one)
    key = signature.encode(signature.describe((np.arange(2.0),), {}, True).payload).key
    with pytest.raises(InvalidPayload):
        signature.decode(key, buffers, rows)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"{}",
        b"[[],[],null]x",
        b'[[["x",0,0]],[["ndarray",["<f8",[-1]]]],null]',
        b'[[["x",0,0]],[["ndarray",["nonsense",[]]]],null]',
        b'[[["x",0,0]],[["unknown",[]]],null]',
        b'[[["x",0,0]],[],null]',
        b'[[["x",0]],[["list",[]]],null]',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda key: key[:20].decode("latin-1"),
)
def test_keys_that_are_none_are_refused(key) -> None:
    with pytest.raises(InvalidPayload):
        Signature(one).decode(key, [Fixed(8, bytes(8))], 1)


def test_an_item_that_leaves_no_axis_for_the_rows_is_refused() -> None:
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    with pytest.raises(InvalidPayload, match="axes leaves none for the rows"):
        Signature(one).describe((np.zeros((1,) * most),), {}, False)
    assert Signature(one).describe((np.zeros((1,) * (most - 1)),), {}, False).rows == 1


@pytest.mark.parametrize("dtype", ["|S0", "<U0"])
def test_texts_of_no_bytes_claim_no_memory(dtype) -> None:
    """A short message must not make as many of them as it likes to say."""
    key = f'[[["x",0,0]],[["ndarray",["{dtype}",[1000000000000]]]],null]'
    with pytest.raises(InvalidPayload, match="has no bytes"):
        Signature(one).decode(key.encode(), [Fixed(0, b"")], 1)
    padded = Signature(one, pad=Pad())
    lengths = np.array([10**12]).tobytes()
    key = f'[[["x",0,0]],[["ragged",["{dtype}",[]]]],null]'
    with pytest.raises(InvalidPayload, match="has no bytes"):
        padded.decode(key.encode(), [Fixed(8, lengths), Var(bytes(4), b"")], 1)
