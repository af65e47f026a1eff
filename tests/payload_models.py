"""Runners with hooks for payloads, in a module that worker processes can import too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batching import BatchOptions, Runner
from batching.payloads import Fixed, Kind, Pad, Piece, Var, take_fixed


@dataclass
class Signals:
    """Signals of one sampling rate: one of shape (samples,), or n of shape (n, samples)."""

    rate_hz: int
    values: np.ndarray


class SignalKind(Kind):
    name = "signals"
    types = (Signals,)

    def lift(self, item: Signals) -> Signals:
        return Signals(item.rate_hz, item.values[np.newaxis])

    def lower(self, batch: Signals) -> Signals:
        return Signals(batch.rate_hz, batch.values[0])

    def rows(self, batch: Signals) -> int:
        return len(batch.values)

    def key(self, batch: Signals) -> Any:
        return batch.rate_hz, batch.values.shape[1]

    def join(self, key: Any, pieces: Sequence[Piece]) -> Signals:
        rows = [batch.values[first : first + rows] for batch, first, rows in pieces]
        return Signals(key[0], np.concatenate(rows, dtype=float))

    def encode(self, key: Any, batch: Signals, *, allow_pickle: bool) -> list[Fixed | Var]:
        return [Fixed(8 * key[1], np.ascontiguousarray(batch.values, dtype=float).tobytes())]

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Signals:
        rate_hz, samples = key
        data = take_fixed(buffers, 8 * samples, rows)
        return Signals(rate_hz, np.frombuffer(data, dtype=float).reshape(rows, samples).copy())


class Halve(Runner):
    """Takes a kind of its own, and returns it."""

    kinds = (SignalKind(),)
    options = BatchOptions(max_batch_size=4)

    def _run_batch(self, signals: Signals) -> Signals:
        return Signals(signals.rate_hz // 2, signals.values[:, ::2])


@dataclass
class Point:
    """An element of lists, of a class that has to be imported to be read."""

    x: Any
    tags: list[str]


class Several(Runner):
    """Returns every argument as an output of its own, and, for each row, what it was told beside."""

    options = BatchOptions(static_args=("mode",), max_batch_size=4)

    def _run_batch(self, x: Any, y: Any = None, *more: Any, mode: Any = "default", **named: Any) -> Any:
        outputs = [x, *([] if y is None else [y]), *more, *(named[name] for name in sorted(named))]
        told = [(type(mode).__name__, repr(mode), len(more), sorted(named))] * len(x)
        assert 0 <= len(x) <= 4
        return (*outputs, told)


class Hoarder(Runner):
    """Keeps every batch, raises if one of them was changed since, and returns memory of its own or
    the batch's in one of several ways."""

    options = BatchOptions(max_batch_size=4, static_args=("how",))

    def _setup(self) -> None:
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.output = np.empty((4, 20_000))

    def _run_batch(self, x: np.ndarray, how: str) -> Any:
        for batch, copy in self.kept:
            np.testing.assert_array_equal(batch, copy)
        x += 1  # its own: it may
        self.kept = [*self.kept[-4:], (x, x.copy())]
        output = self.output[: len(x), : x.shape[1]]
        output[...] = x
        outputs = {"input": x, "view": x[::-1][::-1], "output": output}
        outputs["broadcast"] = np.broadcast_to(x[:, :1], x.shape)
        return tuple(outputs.values()) if how == "all" else outputs[how]


class Rounds(Runner):
    """Integers as they are, and an array of floats once one of them is large."""

    options = BatchOptions(max_batch_size=2)

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return x if x.max() < 2 else x / 2


class Generators(Runner):
    """A generator in every row that asks for one: which no other process could run."""

    def _run_batch(self, wanted: list[bool]) -> list[Any]:
        return [iter_of(range(3)) if each else "none" for each in wanted]


def iter_of(values: Any) -> Iterator[Any]:
    yield from values


class Buckets(Runner):
    """Returns for each row the buckets of all rows in its batch."""

    options = BatchOptions(max_batch_size=4)

    def group_by(self, item: str) -> int:
        if item == "the end":
            raise SystemExit(3)
        return len(item)

    def _run_batch(self, texts: list[str]) -> list[set[int]]:
        return [set(map(len, texts)) for _ in texts]


class Sums(Runner):
    """Sums of what is not padding, and whether that is where the lengths say."""

    pad = Pad(value=-1, lengths="lengths")

    def _run_batch(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask = np.arange(tokens.shape[1]) < lengths[:, np.newaxis]
        assert (tokens[~mask] == -1).all()
        return np.where(mask, tokens, 0).sum(axis=1), lengths


class Trimmed(Runner):
    """Returns padded items without their padding, and the other argument as it is."""

    options = BatchOptions(max_batch_size=4)
    pad = Pad(value=0, lengths="lengths")

    def _run_batch(self, items: np.ndarray, names: list[Any], lengths: np.ndarray) -> Any:
        assert len(items) == len(names) == len(lengths) <= 4
        assert items.shape[1] == lengths.max(initial=0)
        for item, length in zip(items, lengths, strict=True):
            assert (item[length:] == np.full_like(item[length:], 0)).all()
        return [item[:length].copy() for item, length in zip(items, lengths, strict=True)], names


class Allowed(Runner):
    """Returns its argument, and how many rows the model was given."""

    options = BatchOptions(max_batch_size=8, allowed_batch_sizes=(4, 8))

    def _run_batch(self, x: Any) -> Any:
        return x, [len(x)] * len(x), np.full(len(x), len(x))


class Sizes(Runner):
    """Says how many rows it was given by an error, which also a batch of none can have."""

    options = BatchOptions(max_batch_size=8, allowed_batch_sizes=(4, 8))

    def _run_batch(self, x: Any) -> Any:
        raise ValueError(f"given {len(x)} rows")
