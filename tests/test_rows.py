"""Joining and cutting ndarrays by rows: right for every layout and dtype, and nobody else's memory."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, same_array

from batching._native.rows import (
    VIEW_ROW_BYTES,
    BufferPool,
    join_arrays,
    join_blocks,
    split_blocks,
    split_rows,
)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@given(batches())
def test_rows_joined_again_are_the_array(batch: np.ndarray) -> None:
    rows = [batch[i, ...] for i in range(len(batch))]
    if rows:
        assert same_array(join_arrays(rows), np.array(batch, order="C"))


@given(batches(), st.data())
def test_blocks_joined_are_the_concatenation(batch: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=3)))
    edges = [0, *cuts, len(batch)]
    counts = [end - start for start, end in itertools.pairwise(edges)]
    blocks = [(batch, start, count) for start, count in zip(edges, counts, strict=False)]
    assert same_array(join_blocks(blocks), batch)
    parts = split_blocks(batch, counts)
    for part, (_, start, count) in zip(parts, blocks, strict=True):
        assert same_array(part, batch[start : start + count])


@given(batches())
def test_split_rows_are_the_rows_in_memory_of_their_own(batch: np.ndarray) -> None:
    rows = split_rows(batch)
    assert len(rows) == len(batch)
    for row, original in zip(rows, batch, strict=True):
        assert same_array(np.asarray(row), np.asarray(original))
        if isinstance(row, np.ndarray) and not batch.dtype.hasobject:
            assert not np.shares_memory(row, batch)
            assert row.flags.writeable
            assert row.flags.c_contiguous


def test_join_into_out_returns_out() -> None:
    out = np.zeros((2, 3))
    assert join_arrays([np.ones(3), np.full(3, 2.0)], out) is out
    assert out.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_large_rows_are_joined_without_the_gil_and_right() -> None:
    arrays = [np.full(70_000, i, dtype=np.float32) for i in range(8)]
    assert same_array(join_arrays(arrays), np.stack(arrays))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((3, 3)),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((2, 4)),
        np.zeros((2, 3), order="F"),
        np.zeros(6),
        np.broadcast_to(0.0, (2, 3)),
    ],
)
def test_out_of_another_shape_dtype_or_layout_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out"):
        join_arrays([np.ones(3), np.ones(3)], out)


@pytest.mark.parametrize("other", [np.ones(4), np.ones(3, dtype=np.float32), np.ones((3, 1))])
def test_arrays_that_differ_are_refused_by_name(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"float64 of shape \(3,\)"):
        join_arrays([np.ones(3), other])


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="no arrays"):
        join_arrays([])
    with pytest.raises(ValueError, match="no arrays"):
        join_blocks([])


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        join_arrays([[1, 2]])


@pytest.mark.parametrize(("first", "rows"), [(0, 4), (2, 2), (-1, 1), (0, -1)])
def test_rows_outside_of_a_block_are_refused(first: int, rows: int) -> None:
    with pytest.raises(ValueError, match="3 rows"):
        join_blocks([(np.ones((3, 2)), first, rows)])


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [4, -1]])
def test_counts_that_do_not_add_up_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="part"):
        split_blocks(np.ones((3, 2)), counts)


def test_owned_large_rows_are_views_and_small_ones_copies() -> None:
    large = np.zeros((4, VIEW_ROW_BYTES // 8))
    assert all(np.shares_memory(row, large) for row in split_rows(large, owned=True))
    assert all(np.shares_memory(part, large) for part in split_blocks(large, [3, 1], owned=True))
    small = np.zeros((4, VIEW_ROW_BYTES // 8 - 1))
    assert not any(np.shares_memory(row, small) for row in split_rows(small, owned=True))


@pytest.mark.parametrize(
    "result",
    [
        np.broadcast_to(np.zeros(VIEW_ROW_BYTES, dtype="u1"), (3, VIEW_ROW_BYTES)),
        np.zeros((6, VIEW_ROW_BYTES))[::2],
        np.frombuffer(bytes(2 * VIEW_ROW_BYTES), dtype="u1").reshape(2, -1),
    ],
    ids=["broadcast", "strided", "read-only"],
)
def test_rows_of_borrowed_memory_are_copied_even_if_owned(result: np.ndarray) -> None:
    for row in split_rows(result, owned=True):
        assert not np.shares_memory(row, result)
        assert row.flags.writeable


def test_structured_scalars_do_not_refer_to_the_batch() -> None:
    batch = np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])
    rows = split_rows(batch)
    rows[0]["a"] = 7
    assert batch["a"].tolist() == [0, 0]


def test_pool_hands_a_buffer_out_again_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool()
    first = pool.take(np.dtype("f4"), (64, 8))
    place = address(first)
    view = first[3:].T
    del first
    second = pool.take(np.dtype("f4"), (64, 8))
    assert address(second) != place
    del view
    assert address(pool.take(np.dtype("i2"), (100, 8))) == place


def test_pool_buffers_are_aligned_and_writable() -> None:
    array = BufferPool().take(np.dtype("f8"), (5, 3))
    assert array.shape == (5, 3)
    assert array.flags.writeable
    assert address(array) % 64 == 0


def test_pool_keeps_no_buffer_that_would_be_mostly_waste() -> None:
    pool = BufferPool(keep=1)
    large = pool.take(np.dtype("u1"), (1 << 20,))
    del large
    small = pool.take(np.dtype("u1"), (1 << 10,))
    assert small.base.nbytes < 1 << 12


def test_pool_maps_no_new_memory_for_large_batches_whose_sizes_vary() -> None:
    pool = BufferPool(keep=4)
    places = {address(pool.take(np.dtype("u1"), (megabytes << 20,))) for megabytes in (1, 2, 4, 9)}
    for megabytes in (15, 5, 3, 14, 1, 6, 13, 2):
        assert address(pool.take(np.dtype("u1"), (megabytes << 20,))) in places


def test_pool_says_whether_an_array_has_its_memory_to_itself() -> None:
    pool = BufferPool(keep=1)
    kept, beyond, own = pool.take(np.dtype("u1"), (64,)), pool.take(np.dtype("u1"), (64,)), np.empty(4)
    assert [pool.is_alone(array) for array in (kept, beyond, own)] == [True, True, True]
    row, other = kept[:1], beyond[:1]
    assert [pool.is_alone(array) for array in (kept, beyond, row, other)] == [False] * 4
    del kept, beyond
    assert [pool.is_alone(array) for array in (row, other)] == [True, True]
    # Of somebody else's, which may write to it again: as many references, and not the pool's.
    scratch = np.empty(64, np.uint8)
    assert not pool.is_alone(scratch[:8])
    assert not pool.is_alone(np.frombuffer(bytearray(8), np.uint8))
    assert not pool.is_alone([1])


def test_pool_buffer_held_through_the_buffer_protocol_is_not_handed_out() -> None:
    pool = BufferPool()
    held = (ctypes.c_char * 16).from_buffer(pool.take(np.dtype("u1"), (16,)))
    place = ctypes.addressof(held)
    assert address(pool.take(np.dtype("u1"), (16,))) != place
