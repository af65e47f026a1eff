"""Whether a call holds pickle, by the look of its key and its blobs: `_native/trust.h` in Python.

For connections whose other end nobody has vouched for. Decoders refuse pickle as well; this is the
door before them, so that no worker is bothered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, Final

from .wire import VAR, Buffer, Rows

__all__ = ["blob_rules", "holds_pickle"]

ANY, PLAIN, TEXT = range(3)

_MOST_DEPTH = 64
_MOST_SLOTS = 64
_PLAIN_BYTE: Final = 2
_PICKLE_BYTE: Final = 0x80
# Buffers of a kind; the others have as many as they like.
_BUFFERS = {"list": 1, "ndarray": 1, "series": 1, "ragged": 2}
_RULES = {"list": PLAIN, "series": TEXT, "frame": TEXT}
_OBJECTS = ("|O", "O", "object")


class _Pickle(Exception):
    """The key holds it, or is none."""


def holds_pickle(call: Rows) -> bool:
    rules = blob_rules(call.key, tuple(buffer.row_bytes for buffer in call.buffers))
    if rules is None:
        return True
    return any(not _keeps(buffer, rule) for buffer, rule in zip(call.buffers, rules, strict=True))


@functools.lru_cache(1024)
def blob_rules(key: bytes, row_bytes: tuple[int, ...]) -> list[int] | None:
    """What the blobs of each buffer must look like; None if the key holds pickle, or is none."""
    try:
        # Other encodings of JSON, which a reader may understand, have other bytes.
        if not all(0x20 <= byte <= 0x7E for byte in key):
            return None
        whole = json.loads(key)
        _look(whole, 1)
        return _rules(_kinds(whole), row_bytes)
    except (_Pickle, ValueError, RecursionError):
        return None


def _look(value: Any, depth: int) -> None:
    """Raises _Pickle if a pickled value, a pickled dtype, or a dtype of objects is in it."""
    if isinstance(value, dict) or (isinstance(value, str) and value in _OBJECTS):
        raise _Pickle
    if not isinstance(value, list):
        return
    if depth > _MOST_DEPTH:
        raise _Pickle
    match value:
        case ["pickle", str(), *_]:
            raise _Pickle
        case ["str", str(), *rest]:
            value = rest
        case _:
            pass
    for inner in value:
        _look(inner, depth + 1)


def _kinds(whole: Any) -> list[str]:
    """The kinds of the batched arguments."""
    match whole:
        case [list(names), list(tokens), *_]:
            pass
        case _:
            return []
    static = [isinstance(name, list) and len(name) > 2 and bool(name[2]) for name in names]
    static += [False] * len(tokens)
    return [
        token[0]
        for token, is_static in list(zip(tokens, static, strict=False))[:_MOST_SLOTS]
        if not is_static and isinstance(token, list) and token and isinstance(token[0], str)
    ]


def _rules(kinds: list[str], row_bytes: Sequence[int]) -> list[int]:
    rules = [ANY] * len(row_bytes)
    # From both ends, up to the kinds with any number of buffers; what is left in the middle is theirs.
    at = 0
    while kinds and kinds[0] in _BUFFERS:
        _place(kinds[0], at, len(row_bytes), rules, row_bytes)
        at += _BUFFERS[kinds.pop(0)]
    end = len(row_bytes)
    while len(kinds) > 1 and kinds[-1] in _BUFFERS:
        end -= _BUFFERS[kinds[-1]]
        if end < at:
            raise _Pickle
        _place(kinds.pop(), end, len(row_bytes), rules, row_bytes)
    if kinds and all(kind == "frame" for kind in kinds):
        rules[at:end] = [TEXT] * (end - at)
    return rules


def _place(kind: str, at: int, end: int, rules: list[int], row_bytes: Sequence[int]) -> None:
    if at + _BUFFERS[kind] > end or (kind == "ndarray" and row_bytes[at] == VAR):
        raise _Pickle
    rules[at] = _RULES.get(kind, ANY)


def _keeps(buffer: Buffer, rule: int) -> bool:
    if rule == ANY or buffer.lengths is None:
        return True
    lengths = iter(buffer.lengths)
    for chunk in buffer.chunks:
        at = 0
        while at < len(chunk):
            length = next(lengths)
            if length in (0, 0xFFFFFFFF):
                continue
            first = chunk[at]
            if first != _PLAIN_BYTE if rule == PLAIN else first == _PICKLE_BYTE:
                return False
            at += length
    return True
