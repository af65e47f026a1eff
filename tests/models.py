"""Runners for the tests, in a module that worker processes can import too."""

from __future__ import annotations

from typing import Any

import numpy as np

from batching import BatchOptions, Runner, SimpleRunner


class Double(Runner):
    """Doubles arrays, frames and elements of lists, whatever comes."""

    def _run_batch(self, x: Any) -> Any:
        return [element * 2 for element in x] if isinstance(x, list) else x * 2


class Echo(Runner):
    """Returns its only argument."""

    def _run_batch(self, x: Any) -> Any:
        return x


class Scale(Runner):
    """Two batched arguments and a static one."""

    options = BatchOptions(static_args=("factor",))

    def _run_batch(self, x: Any, shift: Any, factor: float = 1.0) -> Any:
        return np.asarray(x) * factor + np.asarray(shift)


class Outputs(Runner):
    """Several outputs of different kinds."""

    def _run_batch(self, x: np.ndarray) -> Any:
        return x + 1, [str(row.sum()) for row in x], x.sum(axis=1)


class Upper(Runner):
    """Strings; one that says "boom" gets an error of its own, in its row."""

    def _run_batch(self, texts: list[str]) -> list[Any]:
        return [ValueError("boom in a row") if text == "boom" else text.upper() for text in texts]


class Picky(Runner):
    """Raises for the whole batch if anything in it is negative."""

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise KeyError("negative")
        return np.sqrt(x)


class Widen(Runner):
    """Answers with far more than it was given."""

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), 60_000), np.uint8)


class Short(Runner):
    """Returns one row too few."""

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return x[:-1]


class Returns(Runner):
    """Returns a value of a type that has no rows."""

    options = BatchOptions(static_args=("what",))

    def _run_batch(self, x: Any, what: str = "dict") -> Any:
        values = {"dict": {"a": 1}, "str": "text", "set": {1, 2}, "none": None, "generator": iter(x)}
        return values[what]


class BatchSize(Runner):
    """Says in every row how many rows its batch had."""

    options = BatchOptions(max_batch_size=8)

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), len(x))


class AsyncDouble(Runner):
    """Hooks that are coroutine functions."""

    async def _setup(self) -> None:
        self.factor = 2

    async def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return x * self.factor


class SetupFails(Runner):
    """A model that cannot be loaded."""

    def _setup(self) -> None:
        raise OSError("no such model: iris.joblib")

    def _run_batch(self, x: Any) -> Any:
        raise AssertionError("never reached")


class Recursive(Runner):
    """Calls itself from inside its batch."""

    def _run_batch(self, x: Any) -> Any:
        return self.run(x[0])


class Asks(Runner):
    """Its own runner refuses what it asks."""

    def _setup(self) -> None:
        self.inner = Scale()

    def _run_batch(self, x: np.ndarray) -> Any:
        return self.inner.run_batch(x, x[:-1])

    def _shutdown(self) -> None:
        self.inner.close()


class Fails(SimpleRunner):
    """Returns an exception instead of raising it."""

    def _run(self, x: Any) -> Any:
        return ValueError("returned")


class Greet(SimpleRunner):
    """Never batched."""

    def _run(self, name: str, greeting: str = "hello") -> str:
        if name == "nobody":
            raise LookupError("nobody is here")
        return f"{greeting} {name}"


double = Double()


class Numbered(Runner):
    """Returns for each row the number of its batch."""

    options = BatchOptions(max_batch_size=4)

    def _setup(self):
        self.batches = 0

    def _run_batch(self, x):
        self.batches += 1
        return np.full(len(x), self.batches)
