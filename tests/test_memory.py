"""Whose memory is it: batches are the model's own, answers the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from batching import BatchOptions, Runner

SMALL, LARGE = 16, 65_536  # float32 elements a row: copied, and shared where that is safe


class Model(Runner):
    """Runs a function of the test's."""

    def __init__(self, function: Callable[[np.ndarray], Any], execution: str = "inline") -> None:
        super().__init__(options=BatchOptions(execution=execution, max_batch_size=4))
        self.function = function

    def _run_batch(self, x: np.ndarray) -> Any:
        return self.function(x)


def rows(columns: int, count: int = 4) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None] * np.ones(columns, dtype=np.float32)


def answers_of(model: Model, columns: int) -> list[np.ndarray]:
    """The answers of four concurrent calls."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(model.run, rows(columns)))


@pytest.mark.parametrize("columns", [SMALL, LARGE])
@pytest.mark.parametrize("execution", ["thread", "inline"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: x + 0,
        lambda x: x[::-1][::-1],
        lambda x: np.asfortranarray(x),
        lambda x: np.broadcast_to(x[:, :1], x.shape),
        lambda x: x.astype(">f4"),
    ],
    ids=["its input", "new", "reversed view", "fortran order", "broadcast", "big-endian"],
)
def test_no_caller_sees_a_write_of_another(function, execution, columns):
    with Model(function, execution) as model:
        answers = answers_of(model, columns)
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, np.full(columns, i))
            answer[:] = -1
        again = model.run_batch(rows(columns))
        first, second = model.run_batch(rows(columns)), again.copy()
        first[:] = -2
        np.testing.assert_array_equal(again, second)
        np.testing.assert_array_equal(again, rows(columns))


@pytest.mark.parametrize("columns", [SMALL, LARGE])
def test_a_result_that_the_model_keeps_and_returns_twice_is_copied(columns):
    kept = np.zeros((4, columns), dtype=np.float32)

    def fill(x: np.ndarray) -> np.ndarray:
        kept[: len(x)] = x
        return kept[: len(x)] if len(x) < 4 else kept

    with Model(fill) as model:
        before = model.run_batch(rows(columns))
        model.run_batch(rows(columns) + 10)
        np.testing.assert_array_equal(before, rows(columns))
        assert not np.shares_memory(before, kept)


def test_large_rows_of_a_result_that_is_nobody_elses_are_views_and_writable():
    with Model(lambda x: x + 1) as model:
        answer = model.run(np.zeros(LARGE, dtype=np.float32))
        assert answer.base is not None
        assert answer.flags.writeable
        small = model.run(np.zeros(SMALL, dtype=np.float32))
        assert small.base is None


class Pairs(Runner):
    """Of two arguments; runs a function of the test's."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], Any], execution: str) -> None:
        super().__init__(options=BatchOptions(execution=execution, max_batch_size=4))
        self.function = function

    def _run_batch(self, x: np.ndarray, y: np.ndarray) -> Any:
        return self.function(x, y)


class AsyncPairs(Pairs):
    async def _run_batch(self, x: np.ndarray, y: np.ndarray) -> Any:
        return self.function(x, y)


def in_two_places(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, x


def with_a_view_of_it(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, x[:]


SEVERAL = {
    # name: what the model makes of its two arguments, and whether large rows of it are shared
    "new": (lambda x, y: (x + 0, y + 1), True),
    "one": (lambda x, y: x + 0, True),
    "with a list": (lambda x, y: (x + 0, list(range(len(x)))), True),
    "its input": (lambda x, y: (x, y), False),
    "in two places": (lambda x, y: in_two_places(x + 0), False),
    "a view and its base": (lambda x, y: with_a_view_of_it(x + 0), False),
    "broadcast": (lambda x, y: (np.broadcast_to(x[:, :1], x.shape), y[::-1][::-1]), False),
    "fortran order": (lambda x, y: (np.asfortranarray(x), x.T.copy().T), False),
}


@pytest.mark.parametrize("columns", [SMALL, LARGE])
@pytest.mark.parametrize("model", [(Pairs, "thread"), (Pairs, "inline"), (AsyncPairs, "thread")], ids=str)
@pytest.mark.parametrize(("function", "is_shared"), SEVERAL.values(), ids=list(SEVERAL))
def test_no_caller_sees_a_write_of_another_into_one_of_several_outputs(model, function, is_shared, columns):
    cls, execution = model
    with cls(function, execution) as runner, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(runner.run, rows(columns), rows(columns) + 10))
        answers += [runner.run_batch(rows(columns), rows(columns)) for _ in range(2)]
        several = [answer if isinstance(answer, tuple) else (answer,) for answer in answers]
        for i, outputs in enumerate(several[:4]):
            np.testing.assert_array_equal(outputs[0], np.full(columns, i))
        assert (several[-1][0].base is not None) == (is_shared and columns == LARGE)
        arrays = [output for outputs in several for output in outputs if isinstance(output, np.ndarray)]
        for i, array in enumerate(arrays):
            array[...] = -i
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(array, np.full_like(array, -i))


def test_an_output_that_the_model_keeps_is_copied():
    kept: list[np.ndarray] = []

    def keep(x: np.ndarray, y: np.ndarray) -> Any:
        kept.append(x + y)
        return kept[-1], x - y

    with Pairs(keep, "inline") as runner:
        total, difference = runner.run_batch(rows(LARGE), rows(LARGE))
        assert total.base is None
        assert difference.base is not None
        total[:] = -1
        np.testing.assert_array_equal(kept[0], 2 * rows(LARGE))


@pytest.mark.parametrize("columns", [SMALL, LARGE])
def test_a_batch_that_the_model_keeps_is_never_written_again(columns):
    kept: list[np.ndarray] = []

    def keep(x: np.ndarray) -> np.ndarray:
        kept.append(x[1:])
        x[0] = 100  # its own memory: it may write into it
        return x * 2

    with Model(keep) as model:
        for i in range(6):
            item = rows(columns) + i
            model.run_batch(item)
            np.testing.assert_array_equal(item, rows(columns) + i)
    for i, batch in enumerate(kept):
        np.testing.assert_array_equal(batch, rows(columns)[1:] + i)


def test_a_batch_array_is_used_again_when_nothing_refers_to_it():
    seen: list[int] = []

    def look(x: np.ndarray) -> np.ndarray:
        seen.append(x.__array_interface__["data"][0])
        return x[:, :1].copy()

    with Model(look) as model:
        for _ in range(4):
            model.run_batch(rows(LARGE))
    assert len(set(seen)) == 1


def test_rows_of_any_layout_are_joined_right():
    base = np.arange(48.0).reshape(4, 12)
    items = [base[:, ::2], np.asfortranarray(base[:, ::2]), base[:, ::2].copy(), base[::-1, ::2]]
    items[2].flags.writeable = False
    with Model(lambda x: x) as model:
        for item in items:
            np.testing.assert_array_equal(model.run(item), item)
            np.testing.assert_array_equal(model.run_batch(item), item)


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="came with NumPy 2.0")
def test_texts_of_variable_length_are_joined_as_values():
    """StringDType keeps its texts outside the array: copying its bytes copies no text."""
    texts = np.array(["a" * 40, "b" * 50, "c"], dtype=np.dtypes.StringDType())
    with Model(lambda x: x) as model:
        assert model.run_batch(texts).tolist() == texts.tolist()


def test_a_structured_scalar_is_no_view_of_the_result():
    pairs = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    kept: list[np.ndarray] = []

    def keep(x: np.ndarray) -> np.ndarray:
        kept.append(x)
        return x

    with Model(keep) as model:
        answer = model.run(pairs[:1].reshape(()))
        kept[0]["a"] = 9
        assert answer["a"] == 1
        np.testing.assert_array_equal(model.run_batch(pairs), pairs)
