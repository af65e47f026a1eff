"""How far is the wait rule from the best choice in hindsight?

Question     for each workload: mean and 99th percentile of the engine's latency, against greedy, every
             fixed window on a grid (waits 0.1 to 10 ms, sizes 2 to the maximum), BentoML's cork rule,
             and, for Poisson arrivals on one worker, the optimum of the semi-Markov decision process, all on
             the same calls.
Competitors  bench/baselines.c, which shares nothing with the engine, and a policy iteration below. They
             are first shown to agree with the engine's own Greedy and FixedWindow, call by call.
Counted      every call from the first one on: what the engine loses while it learns is in its figures.
             A ratio of the 99th percentile is to that of the rule with the best mean.
             Workloads: a table of 150, then 378 others that vary its kinds.
How to run   python -P bench/bench_policy_regret.py [--calls 20000] [--json bench/results/policy_regret.json]
             It compiles the baselines with cc. Simulated time: the machine does not matter.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batching import BatchOptions
from batching.simulation import ClosedLoop, FixedWindow, Greedy, simulate

MAX_ROWS = 128
WAITS_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (2, 4, 8, 16, 32, 64, 128)
RULES = {"greedy": 0, "window": 1, "cork": 2, "table": 3}
P99 = 99


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

    @property
    def cost(self) -> Callable[[int], float]:
        return COSTS[self.cost_name]

    def engine(self, calls: int, policy: Greedy | FixedWindow | None = None) -> np.ndarray:
        arrivals: np.ndarray | ClosedLoop | None = self.arrivals_s
        if arrivals is None:
            thinks = iter(self.thinks_s.tolist())
            arrivals = ClosedLoop(self.callers, lambda rng: next(thinks))
        cost = self.cost
        return simulate(
            arrivals,
            lambda n, rng: cost(n),
            options=BatchOptions(max_batch_size=MAX_ROWS),
            rows=self.rows,
            workers=self.workers,
            requests=calls,
            policy=policy,
        ).latency_s


# ---- the baselines, compiled


class Baselines:
    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="baselines-"))
        source = Path(__file__).parent / "baselines.c"
        library = folder / "baselines.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        self._call = ctypes.CDLL(str(library)).baseline

    def latency_s(
        self,
        work: Workload,
        calls: int,
        rule: str,
        wait_ms: float = 0.0,
        size: int = 1,
        table: np.ndarray | None = None,
    ) -> np.ndarray:
        latency = np.zeros(calls, np.int64)
        rows = np.broadcast_to(np.asarray(work.rows, np.int64), calls)[:calls].copy()
        cost = np.array([round(work.cost(max(1, n)) * 1e9) for n in range(MAX_ROWS + 1)], np.int64)
        arrivals = None if work.arrivals_s is None else np.rint(work.arrivals_s * 1e9).astype(np.int64)
        thinks = None if work.thinks_s is None else np.floor(work.thinks_s * 1e9 + 0.5).astype(np.int64)

        def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
            return None if array is None else ctypes.c_void_p(array.ctypes.data)

        failed = self._call(
            RULES[rule],
            ctypes.c_int64(round(wait_ms * 1e6)),
            ctypes.c_int64(size),
            ctypes.c_int64(MAX_ROWS),
            work.workers,
            ctypes.c_int64(calls),
            pointer(arrivals),
            ctypes.c_int64(work.callers),
            pointer(thinks),
            pointer(rows),
            pointer(cost),
            pointer(table),
            pointer(latency),
        )
        if failed:
            raise MemoryError("no memory for a baseline")
        return latency / 1e9


def optimum(work: Workload) -> np.ndarray:
    """The best policy for Poisson arrivals on one worker, by policy iteration: calls to take by calls queued.

    State: calls in the queue when the worker is idle. Actions: wait for the next call (0), or run any of
    a few sizes of batch up to all. Cost: calls in the system over time.
    """
    rate, top = work.poisson_hz, 5 * MAX_ROWS
    sizes = sorted({*range(1, 17), *range(20, MAX_ROWS, 4), MAX_ROWS})
    took = {size: work.cost(size) for size in range(1, MAX_ROWS + 1)}
    arrive = {size: _poisson(rate * seconds, top) for size, seconds in took.items()}

    def actions(n: int) -> list[int]:
        return [size for size in {*sizes, min(n, MAX_ROWS)} if size <= n] + ([0] if n < top else [])

    def step(n: int, size: int) -> tuple[float, float, np.ndarray]:
        after = np.zeros(top + 1)
        if size == 0:
            after[n + 1] = 1.0
            return n / rate, 1 / rate, after
        seconds, left = took[size], n - size
        after[left:] = arrive[size][: top + 1 - left]
        after[top] += 1.0 - after.sum()
        return n * seconds + rate * seconds**2 / 2, seconds, after

    table = {n: [step(n, size) for size in actions(n)] for n in range(top + 1)}
    costs = {n: np.array([entry[0] for entry in table[n]]) for n in table}
    times = {n: np.array([entry[1] for entry in table[n]]) for n in table}
    nexts = {n: np.array([entry[2] for entry in table[n]]) for n in table}
    choice = {n: actions(n).index(min(n, MAX_ROWS)) if n else 0 for n in table}
    for _ in range(50):
        matrix = np.eye(top + 1) - np.array([nexts[n][choice[n]] for n in table])
        matrix[:, 0] = [times[n][choice[n]] for n in table]  # h(0) is 0: its column carries the gain
        solved = np.linalg.solve(matrix, [costs[n][choice[n]] for n in table])
        gain, value = solved[0], np.concatenate([[0.0], solved[1:]])
        better = {n: int(np.argmin(costs[n] - gain * times[n] + nexts[n] @ value)) for n in table}
        if better == choice:
            break
        choice = better
    return np.array([actions(n)[choice[n]] for n in table], np.int64)


def _poisson(mean: float, top: int) -> np.ndarray:
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, top + 1)))])
    return np.exp(np.arange(top + 1) * np.log(mean) - mean - log_factorial)


# ---- the workloads


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
        yield Workload(f"poisson {load}", name, _poisson_s(rng, calls, rate), poisson_hz=rate)
    for workers, load in itertools.product((2, 3, 4, 8), (0.15, 0.3, 0.5, 0.8)):
        arrivals = _poisson_s(rng, calls, load * most_hz * workers)
        yield Workload(f"poisson {load}, {workers} workers", name, arrivals, workers=workers)
    for size, every, gap, workers in ((12, 15, 0.04, 1), (12, 15, 0.04, 2), (40, 10, 0.01, 4)):
        arrivals = _bursts(rng, calls, np.full(calls, size), every * one, gap * one)
        yield Workload(f"bursts of {size}, {workers} workers", name, arrivals, workers=workers)
    for workers in (1, 2):
        arrivals = _on_off(rng, calls, 0.6 * workers * most_hz, 30 * one)
        yield Workload(f"on/off, {workers} workers", name, arrivals, workers=workers)
    ramp = _poisson_s(rng, calls, np.linspace(0.05, 0.95, calls) * most_hz * 2)
    yield Workload("ramp, 2 workers", name, ramp, workers=2)
    rows = rng.integers(1, 17, calls)
    arrivals = _poisson_s(rng, calls, most_hz / 8.5)
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


def _poisson_s(rng: np.random.Generator, calls: int, rate: float | np.ndarray) -> np.ndarray:
    return np.cumsum(rng.exponential(1.0, calls) / rate)


def _open(name: str, rng: np.random.Generator, calls: int, one: float, most_hz: float) -> Iterator[Workload]:
    for load in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        rate = load * most_hz
        yield Workload(f"poisson {load}", name, _poisson_s(rng, calls, rate), poisson_hz=rate)
    for size, gap in ((8, 0.02), (20, 0.05)):
        yield Workload(
            f"bursts of ~{size}",
            name,
            _bursts(rng, calls, rng.geometric(1 / size, calls), 20 * one, gap * one),
        )
    yield Workload("bursts of 20", name, _bursts(rng, calls, np.full(calls, 20), 30 * one, 0.03 * one))
    yield Workload("on/off", name, _on_off(rng, calls, 0.8 * most_hz, 20 * one))
    yield Workload("ramp", name, _poisson_s(rng, calls, np.linspace(0.05, 0.95, calls) * most_hz))
    rows = rng.integers(1, 9, calls)
    yield Workload("poisson, 1-8 rows", name, _poisson_s(rng, calls, 0.5 * most_hz / 4.5), rows=rows)
    for workers in (2, 4):
        rate = 0.5 * most_hz * workers
        yield Workload(f"poisson 0.5, {workers} workers", name, _poisson_s(rng, calls, rate), workers=workers)


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
    busy_s = _poisson_s(rng, calls, rate)
    ends = np.cumsum(rng.exponential(phase_s, calls))
    pauses = np.concatenate([[0.0], np.cumsum(rng.exponential(phase_s, calls))])
    return busy_s + pauses[np.searchsorted(ends, busy_s)]


# ---- the sections


@dataclass
class Row:
    workload: str
    cost: str
    mean_ms: float
    mean_ratio: float
    p99_ratio: float
    greedy: float
    cork: float
    best: str


def judge(work: Workload, calls: int, baselines: Baselines) -> Row:
    engine = work.engine(calls)
    latencies = {
        "greedy": baselines.latency_s(work, calls, "greedy"),
        "cork": baselines.latency_s(work, calls, "cork"),
    }
    for wait_ms, size in itertools.product(WAITS_MS, SIZES):
        latencies[f"{wait_ms:g}ms/{size}"] = baselines.latency_s(work, calls, "window", wait_ms, size)
    if work.poisson_hz is not None:
        table = optimum(work)
        latencies["optimum"] = baselines.latency_s(work, calls, "table", size=len(table) - 1, table=table)
    means = {rule: float(latency.mean()) for rule, latency in latencies.items()}
    best = min(means, key=means.__getitem__)
    floor, p99 = means[best], float(np.percentile(latencies[best], P99))
    return Row(
        work.name,
        work.cost_name,
        float(engine.mean()) * 1e3,
        float(engine.mean()) / floor,
        float(np.percentile(engine, P99)) / p99,
        means["greedy"] / floor,
        means["cork"] / floor,
        best,
    )


def agree(calls: int, baselines: Baselines) -> int:
    """The engine's Greedy and FixedWindow and the baselines answer every call at the same moment."""
    checked = 0
    for work in workloads(calls):
        for policy, rule, wait_ms, size in (
            (Greedy(), "greedy", 0.0, 1),
            (FixedWindow(wait_ms=1.0, size=16), "window", 1.0, 16),
        ):
            ours, theirs = work.engine(calls, policy), baselines.latency_s(work, calls, rule, wait_ms, size)
            assert np.allclose(ours, theirs, atol=2e-9), (work.name, work.cost_name, rule)
            checked += 1
    return checked


def overload(calls: int) -> Iterator[dict[str, float | str]]:
    for name, load, batches in itertools.product(TABLE, (1.5, 2.0, 3.0), (5, 10, 20)):
        cost = COSTS[name]
        most_hz, budget_s = MAX_ROWS / cost(MAX_ROWS), batches * cost(MAX_ROWS)
        arrivals = _poisson_s(np.random.default_rng(7), calls, load * most_hz)
        options = BatchOptions(max_batch_size=MAX_ROWS, max_latency_ms=budget_s * 1e3)
        outcome = simulate(arrivals, lambda n, rng, cost=cost: cost(n), options=options)
        good = int((outcome.latency_s <= budget_s).sum())
        late = int((outcome.latency_s > budget_s).sum())
        # The best possible: full batches without a pause for as long as calls come, plus the budget.
        share = good / (most_hz * (arrivals[-1] + budget_s))
        yield {"cost": name, "load": load, "budget_batches": batches, "goodput": share, "late": late}


def recovery() -> dict[str, float]:
    """1024 callers for 12 s, then one of them alone."""
    cost, alone_s = COSTS["1ms+20us*n"], COSTS["1ms+20us*n"](1)
    now = {"answers": 0}
    calls = int(12.0 * MAX_ROWS / cost(MAX_ROWS))

    def think(rng: np.random.Generator) -> float:
        now["answers"] += 1
        # Past the crowd's time everybody but the one who answers first leaves for good.
        if now["answers"] <= calls + 1024 or now["answers"] == calls + 2048:
            return 1e-4 * rng.random()
        return 1e-4 * rng.random() if now["answers"] > calls + 2048 else 1e6

    outcome = simulate(ClosedLoop(1024, think), lambda n, rng: cost(n), requests=calls + 1024 + 200)
    lone = outcome.latency_s[-200:]
    settled = np.flatnonzero(lone > 1.1 * alone_s)
    return {"batches_until_1.1": int(settled[-1]) + 1 if len(settled) else 0, "calls": 200}


def judge_all(works: Iterator[Workload], only: str, calls: int, baselines: Baselines) -> list[Row]:
    rows = []
    for work in works:
        if only not in f"{work.cost_name} {work.name}":
            continue
        row = judge(work, calls, baselines)
        rows.append(row)
        print(
            f"{row.cost:12} {row.workload:36} {row.mean_ms:9.3f} ms"
            f"  mean {row.mean_ratio:.3f}  p99 {row.p99_ratio:.3f}"
            f"  (greedy {row.greedy:.3f}, cork {row.cork:.3f}; best {row.best})",
            flush=True,
        )
    return rows


def summary_of(rows: list[Row]) -> dict[str, object]:
    means, tails = np.array([row.mean_ratio for row in rows]), np.array([row.p99_ratio for row in rows])
    return {
        "workloads": len(rows),
        "mean_ratio": {
            "worst": means.max(),
            "average": means.mean(),
            "above_1.05": int((means > 1.05).sum()),
        },
        "p99_ratio": {"worst": tails.max(), "average": tails.mean(), "above_1.25": int((tails > 1.25).sum())},
    }


def say(what: str, summary: dict[str, object]) -> None:
    mean, p99 = summary["mean_ratio"], summary["p99_ratio"]
    print(
        f"{summary['workloads']} {what}:"
        f" mean latency {mean['average']:.3f} on average, {mean['worst']:.3f} at worst"
        f" ({mean['above_1.05']} above 1.05);"
        f" p99 {p99['average']:.3f} on average, {p99['worst']:.3f} at worst ({p99['above_1.25']} above 1.25)"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--only", default="", help="workloads whose name or cost holds this")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    baselines = Baselines()
    print(f"{agree(2000, baselines)} runs of Greedy and FixedWindow agree with the baselines call by call")
    table = judge_all(workloads(chosen.calls), chosen.only, chosen.calls, baselines)
    print()
    more = judge_all(others(chosen.calls), chosen.only, chosen.calls, baselines)
    budgets = list(overload(max(chosen.calls, 50_000)))
    for entry in budgets:
        print(
            f"{entry['cost']:12} load {entry['load']:g}, budget {entry['budget_batches']} full batches:"
            f" goodput {entry['goodput']:.3f} of the best possible, {entry['late']} answers late"
        )
    back = recovery()
    print(
        "after 1024 callers a lone caller is back to 1.1 times its fresh latency"
        f" after {back['batches_until_1.1']} batches"
    )
    summary = {
        **summary_of(table),
        "others": summary_of(more),
        "goodput_worst": min(entry["goodput"] for entry in budgets),
        "recovery_batches": back["batches_until_1.1"],
    }
    if chosen.json:
        chosen.json.parent.mkdir(exist_ok=True)
        rows = [
            [row.cost, row.workload, round(row.mean_ratio, 4), round(row.p99_ratio, 4), row.best]
            for row in [*table, *more]
        ]
        chosen.json.write_text(
            json.dumps({"summary": summary, "rows": rows, "overload": budgets}, indent=1) + "\n"
        )
    say("other workloads", summary["others"])
    say("workloads", summary)


if __name__ == "__main__":
    main()
