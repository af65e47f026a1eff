"""Workloads for bench_policy_regret.py: a table, others of its kinds, and any number by seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from batching import BatchOptions
from batching.simulation import ClosedLoop, FixedWindow, Greedy, simulate

MAX_ROWS = 128


def padded(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


COSTS: dict[str, Callable[[int], float]] = {
    "1ms+20us*n": lambda n: 1e-3 + 20e-6 * n,
    "1ms+1ms*n": lambda n: 1e-3 + 1e-3 * n,
    "5ms+100us*n": lambda n: 5e-3 + 100e-6 * n,
    "50us+5us*n": lambda n: 50e-6 + 5e-6 * n,
    "steps": lambda n: 1e-3 + 20e-6 * padded(n),
    "2ms+50us*n": lambda n: 2e-3 + 50e-6 * n,
    "300us+2us*n": lambda n: 300e-6 + 2e-6 * n,
    "3ms+300us*n": lambda n: 3e-3 + 300e-6 * n,
    "tiles of 32": lambda n: 2e-3 + 30e-6 * (-(-n // 32) * 32),
    "root": lambda n: 1e-3 + 300e-6 * n**0.5,
}
TABLE = ("1ms+20us*n", "1ms+1ms*n", "5ms+100us*n", "50us+5us*n", "steps")
OTHERS = ("2ms+50us*n", "300us+2us*n", "3ms+300us*n", "tiles of 32", "root", "steps", "1ms+20us*n")


@dataclass
class Workload:
    name: str
    cost_name: str
    arrivals_s: np.ndarray | None = None
    callers: int = 0
    thinks_s: np.ndarray | None = None
    rows: np.ndarray | int = 1
    workers: int = 1
    poisson_hz: float | None = None
    max_rows: int = MAX_ROWS
    drawn_cost: Callable[[int], float] | None = None

    @property
    def cost(self) -> Callable[[int], float]:
        return self.drawn_cost or COSTS[self.cost_name]

    def engine(self, calls: int, policy: Greedy | FixedWindow | None = None) -> np.ndarray:
        arrivals: np.ndarray | ClosedLoop | None = self.arrivals_s
        if arrivals is None:
            thinks = iter(self.thinks_s.tolist())
            arrivals = ClosedLoop(self.callers, lambda rng: next(thinks))
        cost = self.cost
        return simulate(
            arrivals,
            lambda n, rng: cost(n),
            options=BatchOptions(max_batch_size=self.max_rows),
            rows=self.rows,
            workers=self.workers,
            requests=calls,
            policy=policy,
        ).latency_s


# ---- the table, and others like it


def workloads(calls: int) -> Iterator[Workload]:
    for number, cost_name in enumerate(TABLE):
        rng = np.random.default_rng(number)
        cost = COSTS[cost_name]
        one, most_hz = cost(1), MAX_ROWS / cost(MAX_ROWS)
        yield from _open(cost_name, rng, calls, one, most_hz)
        yield from _closed(cost_name, rng, calls, one)


def others(calls: int) -> Iterator[Workload]:
    """More of the same kinds, mostly on several workers: other costs, loads, numbers of callers and seeds."""
    for number, cost_name in enumerate(OTHERS):
        rng = np.random.default_rng(100 + number)
        cost = COSTS[cost_name]
        one, most_hz = cost(1), MAX_ROWS / cost(MAX_ROWS)
        yield from _other_open(cost_name, rng, calls, one, most_hz)
        yield from _other_closed(cost_name, rng, calls, one)


def _other_open(
    name: str, rng: np.random.Generator, calls: int, one: float, most_hz: float
) -> Iterator[Workload]:
    for load in (0.1, 0.3, 0.5, 0.7, 0.9):
        rate = load * most_hz
        yield Workload(f"poisson {load}", name, poisson_s(rng, calls, rate), poisson_hz=rate)
    for workers, load in itertools.product((2, 3, 4, 8), (0.15, 0.3, 0.5, 0.8)):
        arrivals = poisson_s(rng, calls, load * most_hz * workers)
        yield Workload(f"poisson {load}, {workers} workers", name, arrivals, workers=workers)
    for size, every, gap, workers in ((12, 15, 0.04, 1), (12, 15, 0.04, 2), (40, 10, 0.01, 4)):
        arrivals = _bursts(rng, calls, np.full(calls, size), every * one, gap * one)
        yield Workload(f"bursts of {size}, {workers} workers", name, arrivals, workers=workers)
    for workers in (1, 2):
        arrivals = _on_off(rng, calls, 0.6 * workers * most_hz, 30 * one)
        yield Workload(f"on/off, {workers} workers", name, arrivals, workers=workers)
    ramp = poisson_s(rng, calls, np.linspace(0.05, 0.95, calls) * most_hz * 2)
    yield Workload("ramp, 2 workers", name, ramp, workers=2)
    rows = rng.integers(1, 17, calls)
    arrivals = poisson_s(rng, calls, most_hz / 8.5)
    yield Workload("poisson, 1-16 rows, 2 workers", name, arrivals, rows=rows, workers=2)


def _other_closed(name: str, rng: np.random.Generator, calls: int, one: float) -> Iterator[Workload]:
    few = ((1, 3), (1, 12), (1, 32), (1, 100))
    many = tuple(itertools.product((2, 3, 4), (6, 32, 96)))
    for workers, callers in few + many:
        spread = rng.uniform(0, 0.1 * one, calls + callers)
        slow = rng.exponential((0.5 if workers == 1 else 0.3) * one, calls + callers)
        for label, thinks in (("think 0.05", spread), ("think exp", slow)):
            yield Workload(
                f"{callers} callers, {label}, {workers} workers",
                name,
                callers=callers,
                thinks_s=thinks,
                workers=workers,
            )


def poisson_s(rng: np.random.Generator, calls: int, rate: float | np.ndarray) -> np.ndarray:
    return np.cumsum(rng.exponential(1.0, calls) / rate)


def _open(name: str, rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Iterator[Workload]:
    for load in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        rate = load * most_hz
        yield Workload(f"poisson {load}", name, poisson_s(rng, calls, rate), poisson_hz=rate)
    for size, gap in ((8, 0.02), (20, 0.05)):
        yield Workload(
            f"bursts of ~{size}",
            name,
            _bursts(rng, calls, rng.geometric(1 / size, calls), 20 * one, gap * one),
        )
    yield Workload("bursts of 20", name, _bursts(rng, calls, np.full(calls, 20), 30 * one, 0.03 * one))
    yield Workload("on/off", name, _on_off(rng, calls, 0.8 * most_hz, 20 * one))
    yield Workload("ramp", name, poisson_s(rng, calls, np.linspace(0.05, 0.95, calls) * most_hz))
    rows = rng.integers(1, 9, calls)
    yield Workload("poisson, 1-8 rows", name, poisson_s(rng, calls, 0.5 * most_hz / 4.5), rows=rows)
    for workers in (2, 4):
        rate = 0.5 * most_hz * workers
        yield Workload(f"poisson 0.5, {workers} workers", name, poisson_s(rng, calls, rate), workers=workers)


def _closed(name: str, rng: np.random.Generator, calls: int, one: float) -> Iterator[Workload]:
    def loop(callers: int, label: str, thinks: np.ndarray, **more: object) -> Workload:
        return Workload(f"{callers} callers, {label}", name, callers=callers, thinks_s=thinks, **more)

    def drawn(callers: int, share: float) -> np.ndarray:
        return rng.uniform(0, 2 * share * one, calls + callers)

    for callers in (2, 8, 64, 256):
        yield loop(callers, "no think time", np.zeros(calls + callers))
        yield loop(callers, "think 0.05", drawn(callers, 0.05))
        yield loop(callers, "think ~1", rng.exponential(one, calls + callers))
    yield loop(16, "think ~0.2", rng.exponential(0.2 * one, calls + 16))
    yield loop(16, "1-8 rows", drawn(16, 0.1), rows=rng.integers(1, 9, calls))
    yield loop(64, "2 workers", drawn(64, 0.1), workers=2)
    yield loop(64, "4 workers", drawn(64, 0.1), workers=4)


def _bursts(
    rng: np.random.Generator, calls: int, sizes: np.ndarray, every_s: float, gap_s: float
) -> np.ndarray:
    first = np.zeros(calls, bool)
    first[np.minimum(np.cumsum(np.concatenate([[0], sizes])), calls - 1)] = True
    return np.cumsum(np.where(first, rng.exponential(every_s, calls), rng.exponential(gap_s, calls)))


def _on_off(rng: np.random.Generator, calls: int, rate: float, phase_s: float) -> np.ndarray:
    busy_s = poisson_s(rng, calls, rate)
    ends = np.cumsum(rng.exponential(phase_s, calls))
    pauses = np.concatenate([[0.0], np.cumsum(rng.exponential(phase_s, calls))])
    return busy_s + pauses[np.searchsorted(ends, busy_s)]


# ---- drawn by seed


def drawn(calls: int, count: int, seed: int) -> Iterator[Workload]:
    """Nobody has seen these when the rule was made: costs, sizes, workers and traffic are drawn."""
    kinds = (
        _drawn_poisson,
        _drawn_closed,
        _drawn_closed,
        _drawn_bursts,
        _drawn_on_off,
        _drawn_ramp,
        _drawn_rows,
    )
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        cost_name, cost = _drawn_cost(rng)
        max_rows = int(rng.choice([16, 32, 64, 128, 256]))
        workers = int(rng.choice([1, 2, 3, 4, 8], p=[0.55, 0.2, 0.06, 0.14, 0.05]))
        most_hz = workers * max_rows / cost(max_rows)
        work = kinds[number % len(kinds)](rng, calls, cost(1), most_hz)
        work.cost_name, work.drawn_cost, work.max_rows, work.workers = cost_name, cost, max_rows, workers
        work.name = f"{number}: {work.name}; up to {max_rows} rows, {workers} workers"
        if workers > 1:
            work.poisson_hz = None  # the optimum is that of one
        yield work


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _drawn_cost(rng: np.random.Generator) -> tuple[str, Callable[[int], float]]:
    base_s, row_s = _log_uniform(rng, 30e-6, 10e-3), _log_uniform(rng, 2e-6, 2e-3)
    tile, power = int(rng.choice([8, 16, 32, 64])), float(rng.uniform(0.6, 1.3))
    shape = rng.choice(["line", "steps", "tiles", "power"], p=[0.5, 0.15, 0.15, 0.2])
    rows_of: Callable[[int], float] = {
        "line": lambda n: n,
        "steps": padded,
        "tiles": lambda n: -(-n // tile) * tile,
        "power": lambda n: n**power,
    }[shape]
    detail = {"tiles": f" of {tile}", "power": f" {power:.2f}"}.get(shape, "")
    return (
        f"{base_s * 1e6:.0f}us+{row_s * 1e6:.0f}us*n {shape}{detail}",
        lambda n: base_s + row_s * rows_of(n),
    )


def _drawn_poisson(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    load = rng.uniform(0.05, 0.95)
    return Workload(
        f"poisson {load:.2f}", "", poisson_s(rng, calls, load * most_hz), poisson_hz=load * most_hz
    )


def _drawn_closed(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    callers, think_s = round(_log_uniform(rng, 2, 256)), _log_uniform(rng, 0.01, 20) * one
    total = calls + callers
    kind = rng.choice(["none", "about", "exponential"])
    thinks = {
        "none": np.zeros(total),
        "about": rng.uniform(0.9, 1.1, total) * think_s,
        "exponential": rng.exponential(think_s, total),
    }[kind]
    name = f"{callers} callers, think {kind} {think_s / one:.2f}"
    return Workload(name, "", callers=callers, thinks_s=thinks)


def _drawn_bursts(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    mean, load = round(_log_uniform(rng, 2, 100)), rng.uniform(0.02, 0.8)
    gap_s = _log_uniform(rng, 0.002, 0.2) * one
    same = bool(rng.integers(2))
    sizes = np.full(calls, mean) if same else rng.geometric(1 / mean, calls)
    every_s = max(mean / (load * most_hz), 1.2 * mean * gap_s)
    name = f"bursts of {'' if same else '~'}{mean}, load {load:.2f}, gap {gap_s / one:.3f}"
    return Workload(name, "", _bursts(rng, calls, sizes, every_s, gap_s))


def _drawn_on_off(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    load, phase = rng.uniform(0.15, 0.95), _log_uniform(rng, 3, 200)
    return Workload(
        f"on/off, load {load:.2f}, phase {phase:.0f}", "", _on_off(rng, calls, load * most_hz, phase * one)
    )


def _drawn_ramp(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    low, high = rng.uniform(0.02, 0.3), rng.uniform(0.6, 0.95)
    if rng.integers(2):
        low, high = high, low
    arrivals = poisson_s(rng, calls, np.linspace(low, high, calls) * most_hz)
    return Workload(f"ramp {low:.2f} to {high:.2f}", "", arrivals)


def _drawn_rows(rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Workload:
    load, top = rng.uniform(0.05, 0.95), int(rng.integers(2, 16))
    rows = rng.integers(1, top + 1, calls)
    arrivals = poisson_s(rng, calls, load * most_hz / float(rows.mean()))
    return Workload(f"poisson {load:.2f}, 1-{top} rows", "", arrivals, rows=rows)
