# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The C wire codec seen from Python, for tests and for tools that look at traffic.

The data plane itself calls the C functions; this binding turns a message into
plain tuples and back, so that the codec can be compared with its pure-Python
twin and fed with random bytes.
"""

import struct

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from c_wire cimport *

__all__ = ["VERDICTS", "blob_rules", "pack", "parse"]

VERDICTS = ("ok", "magic", "version", "truncated", "reserved", "limit", "count", "value")


cdef size_t frame_size(const void *sizes, uint32_t frame) noexcept nogil:
    return (<const size_t *>sizes)[frame]


cdef bytes _bytes(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>size)


def parse(frames):
    """Reads one message: its records, and what ended the reading early.

    Args:
        frames: the message's frames, the packet first.

    Returns:
        ``(records, broken, calls)``. A record is ``(type, id, content)``, content None for a
        type that has none. broken is None for a message that keeps every rule, else the name
        in `VERDICTS` of the one that it breaks; records then holds those before the
        breach, and nobody may act on them. calls are the ids of all CALL and BATCH records that were read.
    """
    cdef list message = [bytes(frame) for frame in frames]
    cdef bytes head = message[0]
    cdef bytes sizes = struct.pack(f"{len(message)}N", *map(len, message))
    cdef bt_packet packet
    cdef bt_record record
    cdef bt_body body
    cdef int step
    cdef list records = []
    cdef list calls = []
    verdict = bt_packet_open(&packet, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head), <uint32_t>len(message))
    if verdict:
        return records, VERDICTS[verdict], calls
    while True:
        step = bt_packet_next(&packet, &record)
        if step <= 0:
            return records, VERDICTS[-step] if step else None, calls
        if record.type == BT_CALL or record.type == BT_BATCH:
            calls.append(record.id)
        verdict = bt_record_check(&record, frame_size, PyBytes_AS_STRING(sizes), &body)
        if verdict:
            return records, VERDICTS[verdict], calls
        records.append((record.type, record.id, _content(record.type, &body, message)))


cdef _content(int type_, bt_body *body, list message):
    if type_ in (BT_CALL, BT_ANSWER, BT_BATCH, BT_RESULT):
        return _rows(&body.rows, message)
    if type_ in (BT_HELLO, BT_WELCOME):
        g = body.greeting
        return (
            g.role, g.lowest_version, g.highest_version, g.credits, g.pid,
            _bytes(g.name, g.name_bytes), _bytes(g.description, g.description_bytes),
        )
    if type_ == BT_ERROR:
        texts = [_bytes(body.error.texts[i], body.error.text_bytes[i]) for i in range(4)]
        return (body.error.code, body.error.exit_code, body.error.number, *texts)
    return None


cdef tuple _rows(bt_wire_rows *rows, list message):
    cdef bt_wire_walk walk
    cdef bt_wire_buffer buffer
    cdef list buffers = []
    bt_wire_rows_walk(rows, &walk)
    while bt_wire_rows_next(rows, &walk, &buffer):
        lengths = _bytes(buffer.lengths, 4 * <size_t>rows.rows) if buffer.lengths != NULL else None
        if buffer.frames:
            data = b"".join(message[buffer.first_frame:buffer.first_frame + buffer.frames])
        else:
            data = _bytes(buffer.data, buffer.bytes)
        buffers.append((buffer.row_bytes, lengths, data))
    return (
        rows.budget_ns, rows.rows, rows.padded_rows, rows.method, _bytes(rows.key, rows.key_bytes),
        _bytes(rows.meta, rows.meta_bytes), buffers, rows.client,
    )


def blob_rules(bytes key, row_bytes):
    """What trust.h says of a key and its buffers' sizes: a rule for each buffer, or None for one that
    holds pickle."""
    cdef bytes sizes = struct.pack(f"<{len(row_bytes)}i", *row_bytes)
    cdef bytearray rules = bytearray(len(row_bytes) + 1)
    if bt_trust_key(key, <uint32_t>len(key), <const uint8_t *><const char *>sizes, <uint16_t>len(row_bytes), rules):
        return None
    return list(rules[:-1])


def pack(records):
    """Writes one message of records as `parse` returns them; large buffers become frames.

    Args:
        records: ``(type, id, content)`` tuples.

    Returns:
        The frames as a list of bytes.

    Raises:
        ValueError: a limit of the format was exceeded, or there was no memory.
    """
    cdef bt_writer writer
    memset(&writer, 0, sizeof(writer))
    cdef list frames = []
    try:
        bt_writer_start(&writer)
        for type_, id_, content in records:
            if type_ in (BT_CALL, BT_ANSWER, BT_BATCH, BT_RESULT):
                _write_rows(&writer, type_, id_, content, frames)
            elif type_ in (BT_HELLO, BT_WELCOME):
                _write_greeting(&writer, type_, content)
            elif type_ == BT_ERROR:
                _write_error(&writer, id_, content)
            else:
                bt_write_empty(&writer, type_, id_)
        if bt_writer_finish(&writer) != 0:
            raise ValueError("the packet is above a limit of the protocol")
        return [_bytes(writer.data, writer.bytes), *frames]
    finally:
        bt_writer_free(&writer)


cdef _write_rows(bt_writer *writer, int type_, id_, tuple content, list frames):
    budget_ns, rows, padded_rows, method, key, meta, buffers, *client = content
    cdef uint16_t count = 0
    bt_write_rows_begin(
        writer, type_, id_, budget_ns, rows, padded_rows, method, len(buffers), len(key), len(meta)
    )
    bt_write_client(writer, client[0] if client else 0)
    for row_bytes, _, data in buffers:
        framed = len(data) > BT_INLINE_MAX_BYTES
        bt_write_descriptor(writer, len(data), row_bytes, framed)
    bt_write_padded(writer, <const char *>(<bytes>key), len(key))
    bt_write_padded(writer, <const char *>(<bytes>meta), len(meta))
    for _, lengths, data in buffers:
        if lengths is not None:
            bt_write_padded(writer, <const char *>(<bytes>lengths), len(lengths))
        if len(data) > BT_INLINE_MAX_BYTES:
            frames.append(data)
            count += 1
        else:
            bt_write_padded(writer, <const char *>(<bytes>data), len(data))
    bt_write_rows_end(writer, count)


cdef _write_greeting(bt_writer *writer, int type_, tuple content):
    cdef bt_wire_greeting g
    role, lowest, highest, credits, pid, name, description = content
    g.role, g.lowest_version, g.highest_version = role, lowest, highest
    g.credits, g.pid = credits, pid
    g.name, g.name_bytes = <const uint8_t *><const char *>(<bytes>name), len(name)
    g.description = <const uint8_t *><const char *>(<bytes>description)
    g.description_bytes = len(description)
    bt_write_greeting(writer, type_, &g)


cdef _write_error(bt_writer *writer, id_, tuple content):
    cdef bt_wire_error e
    cdef bytes text
    e.code, e.exit_code, e.number = content[0], content[1], content[2]
    for i in range(4):
        text = content[3 + i]
        e.texts[i] = <const uint8_t *>PyBytes_AS_STRING(text)
        e.text_bytes[i] = <uint32_t>len(text)
    bt_write_error(writer, id_, &e)
