"""Inputs of a simulation as people write them down: a trace of arrivals, and what a batch costs.

A cost is an expression ("1ms + 20us*n"), or a CSV of measurements with the columns rows and
seconds, as `batching profile` writes it. Nothing is evaluated as code.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .simulation import Cost

__all__ = ["read_cost", "read_trace"]

_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_TERM = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>s|ms|us|µs|ns)(?P<row>\s*\*\s*n)?", re.I
)


def read_cost(text: str) -> Cost:
    """The cost that `text` says: an expression, or the path of a CSV.

    An expression is a sum of durations, each a number and a unit (s, ms, us, ns), and some of
    them times n: "5ms + 100us*n".

    Raises:
        ValueError: neither; the message quotes the part that is not understood.
    """
    if text.endswith(".csv"):
        return _measured(Path(text))
    base_s = row_s = 0.0
    for part in text.split("+"):
        term = _TERM.fullmatch(part.strip())
        if term is None:
            raise ValueError(
                f"a cost is a sum like '1ms + 20us*n' or a .csv file; {part.strip()!r} in {text!r} is neither"
            )
        seconds = float(term["number"]) * _UNITS_S[term["unit"].lower()]
        if term["row"]:
            row_s += seconds
        else:
            base_s += seconds
    return lambda rows, _rng: base_s + row_s * rows


def _measured(path: Path) -> Cost:
    sizes: dict[int, list[float]] = {}
    for rows, seconds in _numbers(path, 2):
        if rows < 1 or rows % 1 or seconds < 0:
            raise ValueError(
                f"{path}: a batch has 1, 2, ... rows and takes 0 s or more, got {rows:g},{seconds:g}"
            )
        sizes.setdefault(int(rows), []).append(seconds)
    if not sizes:
        raise ValueError(f"{path} holds no measurement: a line is rows,seconds")
    known = sorted(sizes)
    times = [float(np.median(sizes[size])) for size in known]
    beyond_s = (times[-1] - times[0]) / (known[-1] - known[0]) if len(known) > 1 else times[0] / known[0]

    def cost(rows: int, rng: np.random.Generator) -> float:
        if rows in sizes:
            return sizes[rows][rng.integers(len(sizes[rows]))]
        if rows > known[-1]:
            return times[-1] + beyond_s * (rows - known[-1])
        return float(np.interp(rows, known, times))

    return cost


def read_trace(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Arrival times in seconds from the first one, ascending, and the rows of each call.

    A line is a time in seconds, or a time and rows; a first line of words is skipped.
    """
    lines = list(_numbers(path, 1))
    if not lines:
        raise ValueError(f"{path} holds no arrival: a line is seconds, or seconds,rows")
    for line in lines:
        if len(line) > 1 and (line[1] < 0 or line[1] % 1):
            raise ValueError(f"{path}: a call has 0, 1, 2, ... rows, got {line[1]:g}")
    times = np.array([line[0] for line in lines])
    rows = np.array([int(line[1]) if len(line) > 1 else 1 for line in lines], np.int64)
    order = np.argsort(times, kind="stable")
    return times[order] - times[order[0]], rows[order]


def _numbers(path: Path, least: int) -> Iterator[list[float]]:
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if not line:
                continue
            try:
                values = [float(cell) for cell in line]
            except ValueError:
                if number == 1:
                    continue
                raise ValueError(f"{path}, line {number}: {','.join(line)!r} is not numbers") from None
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{path}, line {number}: {','.join(line)!r} must be finite")
            if len(values) < least:
                raise ValueError(f"{path}, line {number}: {least} numbers are needed, got {len(values)}")
            yield values
