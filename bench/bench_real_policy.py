"""Does the wait rule do in real time what it does in simulation?

Question     a model that spins 1 ms + 20 us for each row: mean latency and rows per batch with 1 to 256
             asyncio callers in a closed loop and with Poisson callers, embedded and as a service of one
             worker, beside the same traffic simulated. The engine's latency in units of the simulated one.
Deviations   are explained in docs/policy.md, section "In real time".
How to run   python -P bench/bench_real_policy.py [--seconds 2] [--json bench/results/real_policy.json]
             It needs two idle cores: callers and model spin at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop

from batching import BatchOptions, Runner, runner_service
from batching.simulation import ClosedLoop, simulate

BASE_S, ROW_S = 1e-3, 20e-6
CALLERS = (1, 2, 8, 64, 256)
LOADS = (0.2, 0.5)
ROW = np.zeros(4, np.float32)


def cost_s(rows: int) -> float:
    return BASE_S + ROW_S * rows


class Spin(Runner):
    """Keeps its core busy for what a batch of so many rows costs, and holds no lock while it does."""

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        end = time.perf_counter() + cost_s(len(x))
        while (left := end - time.perf_counter()) > 0:
            time.sleep(left if left > 2e-4 else 0)
        return x


@dataclass
class Row:
    traffic: str
    where: str
    measured_ms: float
    simulated_ms: float
    p99_ms: float
    rows_per_batch: float

    @property
    def ratio(self) -> float:
        return self.measured_ms / self.simulated_ms


Call = Callable[[np.ndarray], Awaitable[np.ndarray]]


async def closed(call: Call, callers: int, seconds: float) -> list[float]:
    end, latencies = time.perf_counter() + seconds, []

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            await call(ROW)
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies


async def poisson(call: Call, times_s: np.ndarray) -> list[float]:
    latencies, running = [], set()
    start = time.perf_counter()

    async def one(due: float) -> None:
        await call(ROW)
        latencies.append(time.perf_counter() - due)

    for at in times_s:
        if (left := start + at - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.ensure_future(one(start + at))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return latencies


def simulated_closed_s(callers: int) -> float:
    # What a caller does between an answer and its next call, in this process: some microseconds each.
    loop = ClosedLoop(callers, lambda rng: rng.uniform(0, 4e-6 * callers))
    return float(simulate(loop, lambda rows, rng: cost_s(rows), requests=20_000).latency_s.mean())


def row_of(traffic: str, where: str, latencies: list[float], simulated_s: float, rows: float) -> Row:
    p99_ms = float(np.percentile(latencies, 99)) * 1e3
    return Row(traffic, where, float(np.mean(latencies)) * 1e3, simulated_s * 1e3, p99_ms, rows)


def measure(where: str, make: Callable[[], object], seconds: float) -> list[Row]:
    found = []
    for callers in CALLERS:
        with make() as handle:

            async def run(handle: object = handle, callers: int = callers) -> tuple[list[float], float]:
                await closed(handle.async_run, callers, seconds / 4)
                before = handle.statistics()
                latencies = await closed(handle.async_run, callers, seconds)
                after = handle.statistics()
                return latencies, len(latencies) / max(1, after.batches - before.batches)

            latencies, rows = uvloop.run(run())
        found.append(row_of(f"{callers} callers", where, latencies, simulated_closed_s(callers), rows))
        print(line(found[-1]), flush=True)
    for load in LOADS:
        rate = load * 128 / cost_s(128)
        times_s = np.cumsum(np.random.default_rng(5).exponential(1 / rate, int(rate * seconds)))
        simulated_s = float(simulate(times_s, lambda rows, rng: cost_s(rows)).latency_s.mean())
        with make() as handle:
            uvloop.run(closed(handle.async_run, 8, seconds / 4))
            before = handle.statistics().batches
            latencies = uvloop.run(poisson(handle.async_run, times_s))
            rows = len(latencies) / max(1, handle.statistics().batches - before)
        found.append(row_of(f"poisson, load {load}", where, latencies, simulated_s, rows))
        print(line(found[-1]), flush=True)
    return found


def line(row: Row) -> str:
    return (
        f"{row.where:10} {row.traffic:18} measured {row.measured_ms:7.3f} ms (p99 {row.p99_ms:7.3f}),"
        f" simulated {row.simulated_ms:7.3f} ms: ratio {row.ratio:.3f}; {row.rows_per_batch:.1f} rows a batch"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    options = BatchOptions()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    rows = measure("embedded", lambda: Spin("spin", options=options), chosen.seconds)
    rows += measure("service", lambda: runner_service(Spin("spin", options=options)), chosen.seconds)
    if chosen.json:
        chosen.json.parent.mkdir(exist_ok=True)
        table = [{**asdict(row), "ratio": row.ratio} for row in rows]
        chosen.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
