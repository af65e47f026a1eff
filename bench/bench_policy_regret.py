"""How far is the wait rule from the best choice in hindsight?

Question     for each workload: mean and 99th percentile of the engine's latency, against greedy, every
             fixed window on a grid (waits 0.1 to 10 ms, sizes 2 to the maximum), BentoML's cork rule,
             and, for Poisson arrivals on one worker, the optimum of the semi-Markov decision process, all on
             the same calls.
Competitors  bench/baselines.c, which shares nothing with the engine, and a policy iteration below. They
             are first shown to agree with the engine's own Greedy and FixedWindow, call by call.
Counted      every call from the first one on: what the engine loses while it learns is in its figures.
             A ratio of the 99th percentile is to that of the rule with the best mean.
             Workloads (policy_workloads.py): a table of 150, 378 others that vary its kinds, and as many as
             wanted by seed, so that the rule can be judged on such as nobody looked at.
How to run   python -P bench/bench_policy_regret.py [--calls 100000] [--drawn 280 --seed 1]
             [--json bench/results/policy_regret.json]
             It compiles the baselines with cc and takes some minutes. Simulated time: the machine does not
             matter. With 20,000 calls 1 % of them are three rounds of 64 callers: that is about start-up.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batching import BatchOptions
from batching.simulation import ClosedLoop, FixedWindow, Greedy, simulate

sys.path.insert(0, str(Path(__file__).parent))
from policy_workloads import COSTS, MAX_ROWS, TABLE, Workload, drawn, others, poisson_s, workloads

WAITS_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
RULES = {"greedy": 0, "window": 1, "cork": 2, "table": 3}
P99 = 99


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
        cost = np.array([round(work.cost(max(1, n)) * 1e9) for n in range(work.max_rows + 1)], np.int64)
        arrivals = None if work.arrivals_s is None else np.rint(work.arrivals_s * 1e9).astype(np.int64)
        thinks = None if work.thinks_s is None else np.floor(work.thinks_s * 1e9 + 0.5).astype(np.int64)

        def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
            return None if array is None else ctypes.c_void_p(array.ctypes.data)

        failed = self._call(
            RULES[rule],
            ctypes.c_int64(round(wait_ms * 1e6)),
            ctypes.c_int64(size),
            ctypes.c_int64(work.max_rows),
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
    rate, most = work.poisson_hz, work.max_rows
    top = min(5 * most, 900)
    sizes = sorted({*range(1, min(17, most)), *range(20, most, max(1, most // 32)), most})
    took = {size: work.cost(size) for size in range(1, most + 1)}
    arrive = {size: _poisson(rate * seconds, top) for size, seconds in took.items()}

    def actions(n: int) -> list[int]:
        return [size for size in {*sizes, min(n, most)} if size <= n] + ([0] if n < top else [])

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
    choice = {n: actions(n).index(min(n, most)) if n else 0 for n in table}
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
    sizes = [size for size in SIZES if size <= work.max_rows]
    for wait_ms, size in itertools.product(WAITS_MS, sizes):
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
        arrivals = poisson_s(np.random.default_rng(7), calls, load * most_hz)
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
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--only", default="", help="workloads whose name or cost holds this")
    parser.add_argument("--drawn", type=int, default=280, help="so many workloads are drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    baselines = Baselines()
    print(f"{agree(2000, baselines)} runs of Greedy and FixedWindow agree with the baselines call by call")
    table = judge_all(workloads(chosen.calls), chosen.only, chosen.calls, baselines)
    print()
    more = judge_all(others(chosen.calls), chosen.only, chosen.calls, baselines)
    print()
    unseen = judge_all(drawn(chosen.calls, chosen.drawn, chosen.seed), chosen.only, chosen.calls, baselines)
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
        "drawn": {"seed": chosen.seed, **summary_of(unseen)},
        "goodput_worst": min(entry["goodput"] for entry in budgets),
        "recovery_batches": back["batches_until_1.1"],
    }
    if chosen.json:
        chosen.json.parent.mkdir(exist_ok=True)
        rows = [
            [row.cost, row.workload, round(row.mean_ratio, 4), round(row.p99_ratio, 4), row.best]
            for row in [*table, *more, *unseen]
        ]
        chosen.json.write_text(
            json.dumps({"summary": summary, "rows": rows, "overload": budgets}, indent=1) + "\n"
        )
    say(f"workloads drawn with seed {chosen.seed}", summary["drawn"])
    say("other workloads", summary["others"])
    say("workloads", summary)


if __name__ == "__main__":
    main()
