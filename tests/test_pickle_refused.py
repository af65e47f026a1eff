"""Where pickle is not allowed, nothing a peer writes into a key is unpickled: no call's, no answer's."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batching.errors import InvalidPayload
from batching.payloads import numpy_kind, pickling
from batching.payloads.numpy_kind import dtype_from_token
from batching.payloads.padding import Pad
from batching.signature import Encoded, Signature

TEXT = base64.b64encode(pickle.dumps(np.dtype("i8"))).decode("ascii")
PICKLED = ["pickle", TEXT]
HIDDEN = {
    "plain": PICKLED,
    "in sub": ["sub", PICKLED, [2]],
    "in fields": ["fields", ["a"], [PICKLED], [0], 8],
    "in fields in sub": ["sub", ["fields", ["a", "b"], ["<i8", PICKLED], [0, 8], 16], [2]],
    "in sub in fields": ["fields", ["a"], [["sub", PICKLED, [2]]], [0], 16],
}


def model(x, *, mode="fast"): ...


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was given to pickle to read."""
    seen: list[Any] = []

    def loads(blob: Any, **_: Any) -> None:
        seen.append(blob)

    monkeypatch.setattr(pickle, "loads", loads)
    monkeypatch.setattr(pickling, "_plain_loads", loads)
    return seen


def tuples(token: Any) -> Any:
    return tuple(map(tuples, token)) if isinstance(token, list) else token


def swapped(key: bytes, old: Any, new: Any) -> bytes:
    """The key with another token in one place."""
    texts = [json.dumps(token, separators=(",", ":")) for token in (old, new)]
    assert texts[0] in key.decode()
    return key.decode().replace(*texts, 1).encode()


ARRAY = np.zeros((3, 2))
# Where a dtype stands in a key: of an array, a padded array, a column, and what labels the columns.
VALUES = {
    "ndarray": (ARRAY, {}),
    "ragged": ([ARRAY], {"pad": Pad()}),
    "series": (pd.Series(ARRAY[:, 0]), {}),
    "frame": (pd.DataFrame(ARRAY, columns=[0.5, 1.5]), {}),
    "categories": (pd.Series(pd.Categorical([1.0, 2.0, 1.0])), {}),
}


@pytest.mark.parametrize("token", HIDDEN.values(), ids=list(HIDDEN))
@pytest.mark.parametrize(("value", "options"), VALUES.values(), ids=list(VALUES))
def test_a_pickled_dtype_in_the_key_of_a_call_is_refused_at_every_depth(
    value, options, token, unpickled
) -> None:
    signature = Signature(model, **options)
    call = signature.encode(signature.describe((value,), {}, True).payload, allow_pickle=False)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.decode(swapped(call.key, "<f8", token), call.buffers, call.rows, allow_pickle=False)
    assert unpickled == []


@pytest.mark.parametrize("token", HIDDEN.values(), ids=list(HIDDEN))
@pytest.mark.parametrize("value", [v for v, options in VALUES.values() if not options])
def test_a_pickled_dtype_in_the_key_of_an_answer_is_refused_at_every_depth(value, token, unpickled) -> None:
    signature = Signature(model)
    result = signature.encode_result(value, len(value), allow_pickle=False)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        signature.decode_result(swapped(result.key, "<f8", token), result.buffers, 3, allow_pickle=False)
    assert unpickled == []


@pytest.mark.parametrize("token", HIDDEN.values(), ids=list(HIDDEN))
def test_a_dtype_that_one_caller_may_unpickle_is_not_given_to_one_who_may_not(token) -> None:
    numpy_kind._dtypes.clear()
    dtype_from_token(tuples(token), allow_pickle=True)
    with pytest.raises(InvalidPayload, match="pickle is not allowed"):
        dtype_from_token(tuples(token), allow_pickle=False)


# ---- any key ------------------------------------------------------------------------------------


def at(tree: Any, path: tuple[int, ...]) -> Any:
    return at(tree[path[0]], path[1:]) if path else tree


def places(tree: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    yield path
    if isinstance(tree, list):
        for position, inner in enumerate(tree):
            yield from places(inner, (*path, position))


def replaced(tree: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    first, *rest = path
    return [replaced(inner, tuple(rest), new) if i == first else inner for i, inner in enumerate(tree)]


plain = st.sampled_from(["<f8", "O", "pickle", "sub", "fields", "multi", "values", TEXT, 0, 2, None, [], [2]])
tokens = st.recursive(
    plain | st.just(PICKLED),
    lambda inner: (
        st.tuples(st.just("sub"), inner, st.just([2]))
        | st.tuples(st.just("fields"), st.just(["a"]), st.tuples(inner), st.just([0]), st.just(16))
        | st.tuples(st.just("category"), st.just(0), inner)
        | st.tuples(st.sampled_from(["fixed", "values"]), inner, st.just([]), st.just(["none"]))
        | st.tuples(st.just("multi"), st.tuples(inner))
        | st.tuples(st.sampled_from(["tuple", "list", "set"]), inner)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=5,
).map(lambda token: json.loads(json.dumps(token)))


def known_calls() -> Iterator[tuple[Encoded, Callable[..., Any]]]:
    structured = np.zeros(3, dtype=[("a", "f8", (2,)), ("b", "i4")])
    frame = pd.DataFrame(ARRAY, columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    for value in (structured, frame, [1, "a"], *[value for value, options in VALUES.values() if not options]):
        signature = Signature(model, static_args=("mode",))
        payload = signature.describe((value,), {"mode": ("fast", 1)}, True).payload
        yield signature.encode(payload, allow_pickle=False), signature.decode
        yield signature.encode_result(value, len(value), allow_pickle=False), signature.decode_result
    padded = Signature(model, pad=Pad())
    payload = padded.describe((ARRAY,), {}, False).payload
    yield padded.encode(payload, allow_pickle=False), padded.decode


KNOWN = list(known_calls())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_key_whatever_is_unpickled(unpickled, data) -> None:
    known, decode = data.draw(st.sampled_from(KNOWN))
    tree = json.loads(known.key)
    leaves = [path for path in places(tree) if not isinstance(at(tree, path), list)]
    path = data.draw(st.sampled_from(leaves) | st.sampled_from(list(places(tree))))
    new = data.draw(st.sampled_from(list(HIDDEN.values())) | tokens)
    key = json.dumps(replaced(tree, path, new), separators=(",", ":")).encode()
    with suppress(InvalidPayload):
        decode(key, known.buffers, known.rows, allow_pickle=False)
    assert unpickled == []
