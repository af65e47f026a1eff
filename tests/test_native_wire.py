"""The C wire codec: what it writes it reads back, and no byte sequence confuses it."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching._native import wire

HELLO, WELCOME, CALL, ANSWER, ERROR, CANCEL, BATCH, RESULT, PING, PONG, STOP, BYE = range(1, 13)
NO_BLOB = 0xFFFFFFFF

ids = st.integers(1, 2**64 - 1)
texts = st.binary(max_size=40)


@st.composite
def buffers(draw, rows):
    if draw(st.booleans()):
        row_bytes = draw(st.integers(0, 9))
        return row_bytes, None, draw(st.binary(min_size=rows * row_bytes, max_size=rows * row_bytes))
    lengths = draw(st.lists(st.one_of(st.integers(0, 9), st.just(NO_BLOB)), min_size=rows, max_size=rows))
    size = sum(n for n in lengths if n != NO_BLOB)
    return -1, struct.pack(f"<{rows}I", *lengths), draw(st.binary(min_size=size, max_size=size))


@st.composite
def rows_records(draw):
    kind = draw(st.sampled_from([CALL, ANSWER, BATCH, RESULT]))
    rows = draw(st.integers(0, 5))
    padded = rows + draw(st.integers(0, 3)) if kind == BATCH else rows
    budget = draw(st.integers(-1, 2**63 - 1)) if kind in (CALL, BATCH) else -1
    content = (
        budget, rows, padded, draw(st.integers(0, 65535)), draw(texts), draw(texts),
        draw(st.lists(buffers(rows), max_size=4)), draw(st.integers(0, 2**32 - 1)) if kind == CALL else 0,
    )  # fmt: skip
    return kind, draw(ids), content


greetings = st.tuples(
    st.sampled_from([HELLO, WELCOME]), st.just(0),
    st.tuples(st.integers(1, 3), st.just(1), st.integers(1, 9), st.integers(0, 99), st.integers(0, 2**32 - 1),
              st.binary(max_size=255), texts),
)  # fmt: skip
errors = st.tuples(
    st.just(ERROR), st.integers(0, 2**64 - 1),
    st.tuples(st.integers(1, 9), st.integers(-1, 255), st.integers(-1, 2**62), texts, texts, texts, texts),
)  # fmt: skip
plain = st.tuples(st.sampled_from([CANCEL, PING, PONG, STOP, BYE]), ids, st.none())
messages = st.lists(st.one_of(rows_records(), greetings, errors, plain), max_size=6)


@given(messages)
def test_what_is_written_is_read_back(records):
    assert wire.parse(wire.pack(records)) == (
        records,
        None,
        [id_ for kind, id_, _ in records if kind in (CALL, BATCH)],
    )


def test_large_data_travels_in_a_frame_of_its_own():
    data = bytes(20_000)
    record = (CALL, 1, (-1, 2, 2, 0, b"k", b"", [(10_000, None, data), (4, None, b"abcdefgh")], 3))
    frames = wire.pack([record])
    assert [len(frame) for frame in frames[1:]] == [20_000]
    assert wire.parse(frames) == ([record], None, [1])


def one_call(rows=2, row_bytes=4, key=b"key"):
    return wire.pack(
        [(CALL, 7, (-1, rows, rows, 0, key, b"", [(row_bytes, None, bytes(rows * row_bytes))]))]
    )[0]


def patched(packet, offset, form, value):
    packet = bytearray(packet)
    struct.pack_into(form, packet, offset, value)
    return bytes(packet)


@pytest.mark.parametrize(
    ("offset", "form", "value", "verdict"),
    [
        (0, "<I", 0, "magic"),
        (4, "<H", 2, "version"),
        (6, "<H", 1, "reserved"),
        (8, "<I", 2, "truncated"),
        (8, "<I", 0, "count"),
        (8, "<I", 65_537, "limit"),
        (12, "<I", 2**32 - 1, "truncated"),
        (12, "<I", 16, "count"),
        (16, "<B", 0, "value"),
        (16, "<B", 32, "value"),
        (17, "<B", 1, "reserved"),
        (18, "<H", 1, "count"),
        (20, "<I", 8, "count"),
        (20, "<I", 2**32 - 8, "truncated"),
        (24, "<Q", 0, "value"),
        (32, "<q", -2, "value"),
        (40, "<I", 3, "count"),
        (40, "<I", 2**32 - 1, "limit"),
        (44, "<I", 3, "count"),
        (50, "<H", 4_097, "limit"),
        (50, "<H", 4_096, "truncated"),
        (52, "<I", 2**20 + 1, "limit"),
        (52, "<I", 2**20, "truncated"),
        (56, "<I", 2**32 - 1, "limit"),
        (64, "<Q", 2**63, "limit"),
        (64, "<Q", 9, "count"),
        (72, "<i", -2, "value"),
        (72, "<i", 2**31 - 1, "count"),
        (76, "<I", 1, "count"),
    ],
)
def test_a_field_that_breaks_a_rule_is_named(offset, form, value, verdict):
    assert wire.parse([patched(one_call(), offset, form, value)])[1] == verdict


def test_only_a_call_is_some_client_s():
    content = (-1, 0, 0, 0, b"", b"", [], 7)
    assert wire.parse(wire.pack([(CALL, 1, content)]))[1] is None
    for kind in (ANSWER, BATCH, RESULT):
        assert wire.parse(wire.pack([(kind, 1, content)]))[1] == "reserved"


def test_a_greeting_and_an_error_are_held_to_their_limits():
    def hello(name, description):
        return HELLO, 0, (1, 1, 1, 0, 1, name, description)

    def error(*texts):
        return ERROR, 1, (1, -1, -1, *texts)

    most = bytes(1 << 20)
    assert wire.parse(wire.pack([hello(b"n" * 255, most), error(b"", most, b"", b"")]))[1] is None
    for record in (
        hello(b"n" * 256, b""),
        hello(b"n" * 65_536, b""),
        hello(b"n", most + b"x"),
        error(most, b"", b"", b"x"),
        error(*[bytes(1 << 18)] * 3, bytes(1 << 18 | 1)),
    ):
        assert wire.parse(wire.pack([record]))[1] == "limit"


def test_a_frame_that_ends_inside_a_row_is_refused():
    packet, data = wire.pack([(CALL, 1, (-1, 4, 4, 0, b"", b"", [(5_000, None, bytes(20_000))]))])
    two = patched(patched(packet, 18, "<H", 2), 76, "<I", 2)
    assert wire.parse([two, data[:10_000], data[10_000:]])[1] is None
    assert wire.parse([two, data[:10_001], data[10_001:]])[1] == "count"
    assert wire.parse([two, data[:10_000], data[10_000:], b""])[1] == "count"


def test_a_frame_that_ends_inside_a_blob_is_refused():
    lengths = struct.pack("<3I", 9_000, NO_BLOB, 9_000)
    packet, data = wire.pack([(CALL, 1, (-1, 3, 3, 0, b"", b"", [(-1, lengths, bytes(18_000))]))])
    two = patched(patched(packet, 18, "<H", 2), 76, "<I", 2)
    assert wire.parse([two, data[:9_000], data[9_000:]])[1] is None
    assert wire.parse([two, data[:9_001], data[9_001:]])[1] == "count"


def test_the_calls_read_before_a_breach_are_known():
    content = (-1, 0, 0, 0, b"", b"", [], 0)
    packet = wire.pack([(CALL, 7, content), (CALL, 8, content), (CALL, 9, content)])[0]
    second_budget = 16 + 48 + 16
    broken = patched(packet, second_budget, "<q", -2)
    assert wire.parse([broken])[1:] == ("value", [7, 8])


@given(messages, st.randoms(use_true_random=False))
def test_a_truncated_message_is_refused(records, rng):
    frames = wire.pack(records)
    cut = frames[0][: rng.randrange(len(frames[0]))]
    assert wire.parse([cut, *frames[1:]])[1] is not None


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_random_bytes_are_refused(frames):
    assert wire.parse(frames)[1] is not None


def mutated(frames, rng):
    """The message with a few bytes changed, most often in its packet."""
    frames = [bytearray(frame) for frame in frames]
    for _ in range(rng.randrange(1, 4)):
        frame = frames[0] if rng.random() < 0.9 else rng.choice(frames)
        if frame:
            at = rng.randrange(len(frame))
            frame[at] = rng.choice([0, 1, 2, 7, 8, 16, 127, 128, 255, rng.randrange(256)])
    if rng.random() < 0.1:
        frames.append(bytearray(rng.randrange(9)))
    return [bytes(frame) for frame in frames]


@settings(max_examples=200)
@given(messages, st.integers(0, 2**32))
def test_a_mutated_message_is_refused_or_is_another_message(records, seed):
    records, broken, calls = wire.parse(mutated(wire.pack(records), random.Random(seed)))
    if broken is None:
        assert wire.parse(wire.pack(records)) == (records, None, calls)


def test_a_packet_above_a_limit_is_not_written():
    content = (-1, 0, 0, 0, b"", b"", [], 0)
    with pytest.raises(ValueError, match="limit"):
        wire.pack([(CALL, 1, content)] * 65_537)
