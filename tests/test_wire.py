"""The pure-Python wire codec: what it builds it reads back, and it agrees with the native one."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching._native import wire as native
from batching.runner.buffers import Slicer, join
from batching.runner.wire import (
    INLINE_MAX_BYTES,
    MISSING,
    VAR,
    BadPacket,
    Buffer,
    Failure,
    Greeting,
    Packet,
    Plain,
    Rows,
    Type,
    message_bytes,
    parse,
)

ids = st.integers(1, 2**64 - 1)
blobs = st.binary(max_size=30)
texts = st.text(max_size=20)


@st.composite
def buffers(draw, rows):
    if draw(st.booleans()):
        size = draw(st.integers(0, 9))
        data = draw(st.binary(min_size=rows * size, max_size=rows * size))
        return Buffer(size, [data])
    lengths = draw(st.lists(st.one_of(st.integers(0, 9), st.just(MISSING)), min_size=rows, max_size=rows))
    size = sum(n for n in lengths if n != MISSING)
    return Buffer(VAR, [draw(st.binary(min_size=size, max_size=size))], lengths)


@st.composite
def row_records(draw):
    kind = draw(st.sampled_from([Type.CALL, Type.ANSWER, Type.BATCH, Type.RESULT]))
    rows = draw(st.integers(0, 5))
    padded = rows + draw(st.integers(0, 3)) if kind == Type.BATCH else rows
    budget = draw(st.integers(-1, 2**63 - 1)) if kind in (Type.CALL, Type.BATCH) else -1
    parts = draw(st.lists(buffers(rows), max_size=4))
    client = draw(st.integers(0, 2**32 - 1)) if kind == Type.CALL else 0
    method, metadata = draw(st.integers(0, 9)), draw(blobs)
    return Rows(kind, draw(ids), rows, draw(blobs), parts, budget, padded, method, metadata, client)


greetings = st.builds(
    Greeting, st.sampled_from([Type.HELLO, Type.WELCOME]), st.integers(1, 3), texts, blobs,
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.just(1), st.integers(1, 9),
)  # fmt: skip
failures = st.builds(
    Failure, st.integers(0, 2**64 - 1), st.integers(1, 9), texts, texts, texts, blobs,
    st.integers(-1, 255), st.integers(-1, 2**62),
)  # fmt: skip
plain = st.builds(Plain, st.sampled_from([Type.CANCEL, Type.PING, Type.PONG, Type.STOP, Type.BYE]), ids)
messages = st.lists(st.one_of(row_records(), greetings, failures, plain), max_size=6)


def test_only_a_call_is_some_client_s():
    for kind in (Type.ANSWER, Type.BATCH, Type.RESULT):
        with pytest.raises(BadPacket, match="zero"):
            parse(packed(Rows(kind, 1, 0, b"", [], client=7)))


def packed(*records):
    packet = Packet()
    for record in records:
        packet.add(record)
    return packet.frames()


def comparable(record):
    """A record with its buffers' data as bytes: views compare by identity of their format too."""
    if not isinstance(record, Rows):
        return record
    flat = [
        (b.row_bytes, b"".join(b.chunks), None if b.lengths is None else list(b.lengths))
        for b in record.buffers
    ]
    head = (record.type, record.id, record.rows, record.key, record.budget_ns, record.padded_rows)
    return (*head, record.method, record.metadata, flat)


@given(messages)
def test_what_is_built_is_read_back(records):
    again = parse(packed(*records))
    assert [comparable(record) for record in again] == [comparable(record) for record in records]


@given(messages)
def test_the_size_of_a_message_is_known_before_it_is_built(records):
    for record in records:
        assert message_bytes(record) == sum(len(frame) for frame in packed(record))


@given(messages)
def test_the_native_codec_reads_what_is_built(records):
    read, problem, _ = native.parse([bytes(frame) for frame in packed(*records)])
    assert problem is None
    assert [(kind, id_) for kind, id_, _ in read] == [(record.type, record.id) for record in records]


def one_call(rows=2, row_bytes=4):
    return Rows(Type.CALL, 7, rows, b"key", [Buffer(row_bytes, [bytes(rows * row_bytes)])])


def test_large_data_travels_in_frames_of_its_own_and_small_pieces_are_merged():
    large, small = bytes(INLINE_MAX_BYTES + 4), b"abcd"
    record = Rows(Type.BATCH, 1, 0, b"", [Buffer(4, [small, small, large, small])])
    record.rows = record.padded_rows = (len(large) + 12) // 4
    frames = packed(record)
    assert [len(frame) for frame in frames[1:]] == [8, len(large), 4]
    (again,) = parse(frames)
    assert comparable(again) == comparable(record)


def test_small_pieces_are_gathered_into_one():
    record = Rows(Type.BATCH, 1, 3, b"", [Buffer(4, [b"aaaa", b"bbbb", b"cccc"])])
    (again,) = parse(packed(record))
    assert again.buffers[0].chunks == [b"aaaabbbbcccc"]


def patched(packet, offset, form, value):
    packet = bytearray(packet)
    struct.pack_into(form, packet, offset, value)
    return bytes(packet)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<I", 0),  # magic
        (4, "<H", 2),  # version
        (6, "<H", 1),  # zero
        (8, "<I", 2),  # records
        (8, "<I", 0),
        (8, "<I", 65_537),
        (12, "<I", 8),  # bytes
        (16, "<B", 0),  # type
        (16, "<B", 13),
        (16, "<B", 32),  # reserved for streams
        (17, "<B", 1),  # flags
        (18, "<H", 1),  # frames
        (20, "<I", 12),  # record bytes
        (20, "<I", 2**32 - 8),
        (24, "<Q", 0),  # id
        (32, "<q", -2),  # budget
        (40, "<I", 2**31),  # rows
        (40, "<I", 3),
        (44, "<I", 3),  # padded rows of a CALL
        (50, "<H", 4_097),  # buffers
        (52, "<I", 2**20 + 8),  # key
        (52, "<I", 2**32 - 1),
        (56, "<I", 2**32 - 1),  # metadata
        (64, "<Q", 9),  # data
        (64, "<Q", 2**63),
        (72, "<i", -2),  # row size
        (72, "<i", -1),
        (76, "<I", 1),  # frames of the buffer
    ],
)
def test_a_broken_field_is_refused_as_the_native_codec_refuses_it(offset, form, value):
    packet = patched(packed(one_call())[0], offset, form, value)
    with pytest.raises(BadPacket):
        parse([packet])
    assert native.parse([packet])[1] is not None


@pytest.mark.parametrize(
    "record",
    [
        Greeting(Type.HELLO, 1, "n" * 256),
        Greeting(Type.HELLO, 1, "n" * 65_536),
        Greeting(Type.HELLO, 1, "n", bytes((1 << 20) + 1)),
        Rows(Type.CALL, 1, 0, bytes((1 << 20) + 1), []),
        Rows(Type.CALL, 1, 0, b"", [], metadata=bytes((1 << 20) + 1)),
        Rows(Type.CALL, 1, 0, b"", [Buffer(0, [])] * 4_097),
        Rows(Type.CALL, 1, 2**31, b"", []),
    ],
    ids=["name", "long name", "description", "key", "metadata", "buffers", "rows"],
)
def test_what_is_above_a_limit_is_refused_as_the_native_codec_refuses_it(record):
    frames = [bytes(frame) for frame in packed(record)]
    with pytest.raises(BadPacket):
        parse(frames)
    assert native.parse(frames)[1] == "limit"


def test_a_message_is_held_to_its_limit_in_bytes():
    record = one_call(rows=5_000)
    size = message_bytes(record)
    assert len(parse(packed(record), size)) == 1
    with pytest.raises(
        BadPacket, match=f"a message of {size} bytes is above max_message_bytes, {size - 1}"
    ) as caught:
        parse(packed(record), size - 1)
    assert caught.value.ids == [7]


def test_the_calls_of_a_broken_packet_can_be_told():
    packet = packed(one_call(), one_call())[0]
    with pytest.raises(BadPacket) as caught:
        parse([packet[:-8]])
    assert caught.value.ids == []  # the sizes disagree before any record is read
    broken = patched(packet, 12, "<I", len(packet) - 8)[:-8]
    with pytest.raises(BadPacket) as caught:
        parse([broken])
    assert caught.value.ids == [7, 7]


@given(messages, st.randoms(use_true_random=False), st.data())
@settings(max_examples=150)
def test_damaged_packets_raise_nothing_else_and_both_codecs_agree(records, rng: random.Random, data):
    frames = [bytearray(frame) for frame in packed(*records)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[rng.randrange(len(frames))]
        if frame and rng.random() < 0.8:
            frame[rng.randrange(len(frame))] = rng.choice([0, 1, 7, 8, 127, 128, 255])
        else:
            del frame[rng.randrange(len(frame) + 1) :]
    damaged = [bytes(frame) for frame in frames]
    try:
        parse(damaged)
        problem = None
    except BadPacket as error:
        problem = str(error)
    assert (problem is None) == (native.parse(damaged)[1] is None), (problem, native.parse(damaged)[1])


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_bytes_raise_nothing_else(frames):
    with pytest.raises(BadPacket):
        parse(frames)


@given(st.integers(0, 6).flatmap(lambda rows: st.tuples(st.just(rows), buffers(rows))), st.data())
def test_cutting_and_joining_gives_the_bytes_back(case, data):
    rows, buffer = case
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=3)))
    edges = [0, *cuts, rows]
    slicer = Slicer([buffer])
    parts = [slicer.cut(a, b - a) for a, b in itertools.pairwise(edges)]
    (joined,) = join(parts)
    assert b"".join(joined.chunks) == b"".join(buffer.chunks)
    assert list(joined.lengths or []) == list(buffer.lengths or [])


def test_rows_are_cut_out_of_several_frames():
    slicer = Slicer([Buffer(2, [b"aabb", b"ccddee", b"ff"])])
    (cut,) = slicer.cut(1, 4)
    assert b"".join(cut.chunks) == b"bbccddee"
