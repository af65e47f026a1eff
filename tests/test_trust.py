"""The dispatcher's door: pickle of a client that nobody has vouched for reaches no worker."""

from __future__ import annotations

import base64
import json
import pickle
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import elements

from batching._native import wire as native
from batching.errors import InvalidPayload
from batching.payloads.padding import Pad
from batching.runner.encoding import from_encoded
from batching.runner.trust import ANY, PLAIN, TEXT, blob_rules, holds_pickle
from batching.runner.wire import Rows, Type
from batching.signature import Signature

PICKLED = base64.b64encode(pickle.dumps(print)).decode()


def one(x): ...


def tuned(x, *, mode="fast"): ...


def both(x, y): ...


def call_of(signature: Signature, *args: Any, allow_pickle: bool, **kwargs: Any) -> Rows:
    encoded = signature.encode(signature.describe(args, kwargs, True).payload, allow_pickle=allow_pickle)
    return Rows(Type.CALL, 1, encoded.rows, encoded.key, from_encoded(encoded.buffers))


def sizes(call: Rows) -> tuple[int, ...]:
    return tuple(buffer.row_bytes for buffer in call.buffers)


def agreed(call: Rows) -> bool:
    """Whether it is let in; both codecs say the same of its key."""
    rules = blob_rules(call.key, sizes(call))
    assert native.blob_rules(call.key, sizes(call)) == rules
    return not holds_pickle(call)


ARRAY = np.zeros((3, 2))
TEXTS = pd.DataFrame({"a": ["x", None, "\x80\x01"], "n": [1, 2, 3], "b": ["", "|O", "pickle"]})
PLAIN_CALLS = [
    (Signature(one), (ARRAY,), [ANY]),
    (Signature(one), ([1, "a", b"\x80"],), [PLAIN]),
    (Signature(one), (TEXTS,), None),
    (Signature(one), (TEXTS["a"],), [TEXT]),
    (Signature(one), (pd.Series([1.5, 2.5], name="pickle"),), [TEXT]),
    (Signature(one), (pd.DataFrame(ARRAY, columns=["pickle", "|O"]),), None),
    (Signature(one), (pd.DataFrame(ARRAY, columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),), None),
    (Signature(one, pad=Pad()), (ARRAY,), [ANY, ANY]),
    (Signature(both), (ARRAY, [1, 2, 3]), [ANY, PLAIN]),
    (Signature(both), ([1, 2, 3], TEXTS), None),
    (Signature(both), (TEXTS, [1, 2, 3]), None),
]


@pytest.mark.parametrize(("signature", "args", "rules"), PLAIN_CALLS)
def test_what_needs_no_pickle_is_let_in(signature, args, rules) -> None:
    call = call_of(signature, *args, allow_pickle=False)
    assert agreed(call)
    if rules is not None:
        assert blob_rules(call.key, sizes(call)) == rules


PICKLED_CALLS = [
    (Signature(one), ([1, object()],), {}),
    (Signature(one), (np.array([1, "a"], dtype=object),), {}),
    (Signature(one), (np.zeros(2, dtype=[("a", "O")]),), {}),
    (Signature(one), (pd.DataFrame({"o": [object()]}),), {}),
    (Signature(one), (pd.Series([object(), 1]),), {}),
    (Signature(one), (pd.DataFrame({print: [1]}),), {}),
    (Signature(tuned, static_args=("mode",)), (ARRAY,), {"mode": print}),
    (Signature(tuned, static_args=("mode",)), (ARRAY,), {"mode": ("fast", [{"deep": print}])}),
    (Signature(both), (TEXTS, [object()] * 3), {}),
    (Signature(both), (np.zeros(3, dtype=object), TEXTS), {}),
    (Signature(both), (TEXTS, np.zeros(3, dtype=object)), {}),
]


@pytest.mark.parametrize(("signature", "args", "kwargs"), PICKLED_CALLS)
def test_what_needs_pickle_is_not(signature, args, kwargs) -> None:
    assert not agreed(call_of(signature, *args, allow_pickle=True, **kwargs))


@given(st.lists(elements(), min_size=1, max_size=4))
def test_a_list_is_let_in_as_values_and_not_as_pickles(values) -> None:
    signature = Signature(one)
    assert not agreed(call_of(signature, values, allow_pickle=True))
    try:
        call = call_of(signature, values, allow_pickle=False)
    except InvalidPayload:
        return
    assert agreed(call)


NDARRAY = ["ndarray", ["<f8", [2]]]


@pytest.mark.parametrize(
    "token",
    [
        ["pickle", PICKLED],
        ["pickle", PICKLED, "more"],
        ["tuple", ["pickle", PICKLED]],
        ["ndarray", [["pickle", PICKLED], []]],
        ["ndarray", [["sub", ["fields", ["a"], [["pickle", PICKLED]], [0], 8], [2]], []]],
    ],
)
@pytest.mark.parametrize(
    "written", ["plain", "escaped", "spaced", "utf-16", "utf-16-le", "utf-8-sig", "tabbed"]
)
def test_a_pickle_in_a_key_is_found_however_it_is_written(token, written) -> None:
    text = json.dumps([[["x", 0, 0], ["m", 1, 1]], [NDARRAY, token], None])
    match written:
        case "plain":
            key = text.encode()
        case "escaped":
            key = text.replace("pickle", "\\u0070\\u0069ckl\\u0065").encode()
        case "spaced":
            key = text.replace(",", "  ,  ").replace("[", "[ ").encode()
        case "tabbed":
            key = text.replace(",", "\t,\n").encode()
        case encoding:
            key = text.encode(encoding)
    assert blob_rules(key, (16,)) is None
    assert native.blob_rules(key, (16,)) is None


def test_a_key_of_any_depth_is_looked_at_without_harm() -> None:
    for key in (
        b"[" * 100_000,
        b"[" * 64 + b"]" * 64,
        b"[" * 65 + b"]" * 65,
        b"]",
        b'"',
        b'"\\u00',
        b"",
        b"[}",
    ):
        native.blob_rules(key, ())
        blob_rules(key, ())
    assert native.blob_rules(b"[" * 65 + b"]" * 65, ()) is None
    assert blob_rules(b"[" * 65 + b"]" * 65, ()) is None


tokens = st.recursive(
    st.sampled_from(["list", "ndarray", "series", "ragged", "frame", "own", "pickle", "str", "|O", "x"])
    | st.integers(0, 2)
    | st.none(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
names = st.lists(st.tuples(st.just("x"), st.just(0), st.integers(0, 1)).map(list), max_size=4)


@given(names, st.lists(tokens, max_size=4), st.lists(st.sampled_from([-1, 0, 8]), max_size=5))
def test_both_codecs_say_the_same_of_any_key(names, tokens, row_bytes) -> None:
    key = json.dumps([names, tokens, None], separators=(",", ":")).encode()
    assert native.blob_rules(key, row_bytes) == blob_rules(key, tuple(row_bytes))


def test_a_blob_is_found_behind_missing_and_empty_ones() -> None:
    signature = Signature(one)
    call = call_of(signature, pd.Series(["", None, "a"]), allow_pickle=False)
    assert agreed(call)
    call.buffers[0].chunks = [b"\x80"]
    assert not agreed(call)
    assert struct.pack("<3I", *call.buffers[0].lengths) == struct.pack("<3I", 0, 0xFFFFFFFF, 1)
