"""Does the wait rule do in real time what it does in simulation, and if not, why?

Question     a model that takes 1 ms + 20 us for each row: mean latency and rows per batch with 1 to 256
             asyncio callers in a closed loop and with Poisson callers, embedded and as a service of one
             worker, beside the same traffic simulated. The engine's latency in units of the simulated one.
Explained    by measurements of the same run, so that nothing is left to reasoning:
               cost   what the batches took (engine's clock, hand-over to result) above 1 ms + 20 us a row
               late   Poisson callers: from when a call was due until it was made (timers, the loop's turn)
               in     from a call being made until its turn of the loop ends (only then can a worker thread
                      have the interpreter, or does a message leave), and from there, of the lone caller,
                      whom nobody delays, until his batch starts
               out    from the end of a batch until its caller runs again: waking the loop, and its turn
               unasked  a worker is free and calls are there, and the scheduler is not asked yet, which the
                      simulator does with each call: the median of the batches; no part of the sum
             The simulator is then given what each batch took beyond its rows, and the times at which the
             calls came in (in a closed loop: how long callers stayed away after the end of their batch).
             Its latency plus late, in and out is what the call should have taken; measured / replayed says
             how much of it that leaves unexplained.
Deviations   above 10 % are on the page, docs/policy.md, section "In real time".
How to run   python -P bench/bench_real_policy.py [--rounds 7] [--seconds 0.5] [--json FILE]
             It needs two idle cores: callers and model are at work at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from batching import BatchOptions, Runner, runner_service
from batching.simulation import ClosedLoop, Outcome, simulate
from batching.statistics import Release

BASE_S, ROW_S = 1e-3, 20e-6
CALLERS = (1, 2, 8, 64, 256)
LOADS = (0.2, 0.5)
ROW = np.zeros(4, np.float32)
# More often than the engine forgets a release: it remembers 256, and a batch takes 1 ms at least.
LOOK_EVERY_S = 0.1


def cost_s(rows: int) -> float:
    return BASE_S + ROW_S * rows


class Spin(Runner):
    """Keeps its core busy for what a batch of so many rows costs, and holds no lock while it does."""

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        end = time.perf_counter() + cost_s(len(x))
        while (left := end - time.perf_counter()) > 0:
            time.sleep(left if left > 2e-4 else 0)
        return x


# ---- what happened


class Turn:
    """A turn of the loop in which calls were made."""

    _now: Turn | None = None

    def __init__(self) -> None:
        self.end_s = 0.0

    @classmethod
    def now(cls) -> Turn:
        if cls._now is None:
            cls._now = cls()
            asyncio.get_running_loop().call_soon(cls._now._end)
        return cls._now

    def _end(self) -> None:
        self.end_s = time.monotonic()
        Turn._now = None


@dataclass
class Trace:
    """One run: of each call (caller, due, made, answered), in monotonic seconds, and its turn."""

    calls: list[tuple[int, float, float, float]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)  # of the calls
    releases: dict[int, Release] = field(default_factory=dict)

    def column(self, number: int) -> np.ndarray:
        return np.array([call[number] for call in self.calls])

    @property
    def took_s(self) -> np.ndarray:
        return self.column(3) - self.column(1)

    @property
    def late_s(self) -> float:
        return float(np.mean(self.column(2) - self.column(1)))

    def turn_ends_s(self) -> np.ndarray:
        return np.array([turn.end_s for turn in self.turns])

    def ended(self) -> list[Release]:
        return [
            self.releases[number] for number in sorted(self.releases) if self.releases[number].actual_cost_ms
        ]

    def ends_s(self) -> np.ndarray:
        return np.sort([release.released_s + release.actual_cost_ms / 1e3 for release in self.ended()])

    def batch_ends_s(self) -> np.ndarray:
        """Of each call the end of its batch: the last one before its answer."""
        ends = self.ends_s()
        return ends[np.maximum(np.searchsorted(ends, self.column(3)) - 1, 0)]

    def rows_per_batch(self) -> float:
        return float(np.mean([release.rows for release in self.ended()]))

    def excesses_s(self) -> np.ndarray:
        """What each batch took beyond its rows' cost, in the order of the batches."""
        return np.array([r.actual_cost_ms / 1e3 - cost_s(r.rows) for r in self.ended()])

    def excess_s(self) -> float:
        """Of the batch of a call, not of a batch: the large ones have more calls."""
        return float(np.average(self.excesses_s(), weights=[r.calls for r in self.ended()]))

    def in_s(self) -> float:
        """From the turn's end to the release of the call's batch: of a lone caller, whom nothing delays."""
        starts = np.sort([release.released_s for release in self.ended()])
        number = np.searchsorted(starts, self.column(2))
        known = number < len(starts)
        return max(0.0, float(np.median(starts[number[known]] - self.turn_ends_s()[known])))

    def out_s(self) -> np.ndarray:
        return self.column(3) - self.batch_ends_s()

    def unasked_s(self) -> float:
        """From a batch's first call, or the end of the one before, to its release, less what it was held."""
        made, rows = np.sort(self.column(2)), np.array([release.rows for release in self.ended()])
        starts = np.array([release.released_s for release in self.ended()])
        held = np.array([release.held_ms / 1e3 for release in self.ended()])
        whole = np.cumsum(rows) <= len(made)
        first = made[np.cumsum(rows)[whole] - rows[whole]]
        free = np.concatenate([[0.0], self.ends_s()[:-1]])[whole]
        return max(0.0, float(np.median(starts[whole] - np.maximum(first, free) - held[whole])))

    def away_s(self) -> list[float]:
        """From the end of a caller's batch to his next call, in the order of the answers."""
        last: dict[int, tuple[float, float]] = {}
        away = []
        all_of_them = zip(self.calls, self.turns, self.batch_ends_s(), strict=True)
        for (caller, _, _, answered), turn, end in all_of_them:
            if caller in last:
                away.append((*last[caller], max(0.0, turn.end_s - last[caller][0])))
            last[caller] = end, answered
        return [seconds for _, _, seconds in sorted(away)]


Call = Callable[[np.ndarray], Awaitable[np.ndarray]]


@asynccontextmanager
async def watched(handle: object, trace: Trace) -> AsyncIterator[None]:
    """Collects the releases while it is open."""
    first = handle.statistics().batches

    def look() -> None:
        trace.releases |= {r.number: r for r in handle.statistics().recent_releases if r.number > first}

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            look()

    looking = asyncio.ensure_future(keep_looking())
    yield
    looking.cancel()
    look()


async def closed(call: Call, trace: Trace, *, callers: int, seconds: float) -> None:
    end = time.monotonic() + seconds

    async def caller(number: int) -> None:
        while (began := time.monotonic()) < end:
            turn = Turn.now()
            await call(ROW)
            trace.calls.append((number, began, began, time.monotonic()))
            trace.turns.append(turn)

    await asyncio.gather(*(caller(number) for number in range(callers)))


async def poisson(call: Call, trace: Trace, *, times_s: np.ndarray) -> None:
    running = set()
    start = time.monotonic()

    async def one(due: float) -> None:
        made, turn = time.monotonic(), Turn.now()
        await call(ROW)
        trace.calls.append((0, due, made, time.monotonic()))
        trace.turns.append(turn)

    for at in times_s:
        if (left := start + at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        task = asyncio.ensure_future(one(start + at))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


# ---- the same, simulated


# A machine that has no time for a batch has none for the callers either. So what was measured is replayed
# in its order: drawn at random, each delay would fall on a moment at which nothing else was delayed.


def replay_closed(trace: Trace, callers: int, in_s: float) -> Outcome:
    """Twice over, so that the second half, which counts, begins with what was learned."""
    excess = itertools.cycle(trace.excesses_s().tolist())
    away = itertools.chain(itertools.repeat(0.0, callers), itertools.cycle(trace.away_s()))
    loop = ClosedLoop(callers, lambda rng: next(away) + in_s)
    outcome = simulate(loop, lambda rows, rng: cost_s(rows) + next(excess), requests=2 * len(trace.calls))
    return replace(outcome, latency_s=outcome.latency_s[len(trace.calls) :])


def replay_open(trace: Trace) -> Outcome:
    made = np.sort(trace.turn_ends_s())
    starts = np.array([release.released_s for release in trace.ended()])
    excesses = trace.excesses_s()
    taken = 0

    def cost(rows: int, rng: np.random.Generator) -> float:
        # Of the batch that began, in the trace, when the last of these calls had been made.
        nonlocal taken
        taken += rows
        number = int(np.searchsorted(starts, made[taken - 1]))
        return cost_s(rows) + excesses[min(number, len(excesses) - 1)]

    return simulate(made - made[0], cost)


# ---- the table


@dataclass
class Row:
    traffic: str
    where: str
    measured_ms: float
    p99_ms: float
    rows_per_batch: float
    simulated_ms: float
    cost_ms: float
    late_ms: float
    in_ms: float
    out_ms: float
    unasked_ms: float
    replayed_ms: float
    replayed_rows_per_batch: float

    @property
    def ratio(self) -> float:
        return self.measured_ms / self.simulated_ms

    @property
    def unexplained(self) -> float:
        return self.measured_ms / self.replayed_ms


def row_of(traffic: str, where: str, trace: Trace, plain: Outcome, replay: Outcome, in_s: float) -> Row:
    out_s = float(trace.out_s().mean())
    in_s += float(np.mean(trace.turn_ends_s() - trace.column(2)))
    return Row(
        traffic=traffic,
        where=where,
        measured_ms=float(trace.took_s.mean()) * 1e3,
        p99_ms=float(np.percentile(trace.took_s, 99)) * 1e3,
        rows_per_batch=trace.rows_per_batch(),
        simulated_ms=float(plain.latency_s.mean()) * 1e3,
        cost_ms=trace.excess_s() * 1e3,
        late_ms=trace.late_s * 1e3,
        in_ms=in_s * 1e3,
        out_ms=out_s * 1e3,
        unasked_ms=trace.unasked_s() * 1e3,
        replayed_ms=(float(replay.latency_s.mean()) + trace.late_s + in_s + out_s) * 1e3,
        replayed_rows_per_batch=float(replay.batch_rows.mean()),
    )


Drive = Callable[[Call, Trace], Awaitable[None]]


def traces_of(make: Callable[[], object], warm: Drive, drive: Drive, rounds: int) -> list[Trace]:
    """The same traffic several times over, on one engine."""
    traces = [Trace() for _ in range(rounds)]

    async def run(handle: object) -> None:
        await warm(handle.async_run, Trace())
        for trace in traces:
            async with watched(handle, trace):
                await drive(handle.async_run, trace)

    with make() as handle:
        uvloop.run(run(handle))
    return traces


def middle(rows: list[Row]) -> Row:
    """The round of the median latency, whole: its parts belong together."""
    return sorted(rows, key=lambda row: row.measured_ms)[len(rows) // 2]


def measure(where: str, make: Callable[[], object], seconds: float, rounds: int) -> list[Row]:
    found: list[Row] = []
    in_s = 0.0
    for callers in CALLERS:
        drive = partial(closed, callers=callers, seconds=seconds)
        traces = traces_of(make, drive, drive, rounds)
        # What a caller does between an answer and its next call, in this process: some microseconds each.
        loop = ClosedLoop(callers, lambda rng, callers=callers: rng.uniform(0, 4e-6 * callers))
        plain = simulate(loop, lambda rows, rng: cost_s(rows), requests=20_000)
        in_s = float(np.median([trace.in_s() for trace in traces])) if callers == 1 else in_s
        rows = [
            row_of(f"{callers} callers", where, trace, plain, replay_closed(trace, callers, in_s), in_s)
            for trace in traces
            if trace.away_s()  # else the machine stood still for the whole round
        ]
        found.append(middle(rows))
        print(line(found[-1]), flush=True)
    for load in LOADS:
        rate = load * 128 / cost_s(128)
        times_s = np.cumsum(np.random.default_rng(5).exponential(1 / rate, int(rate * seconds)))
        plain = simulate(times_s, lambda rows, rng: cost_s(rows))
        warm = partial(closed, callers=8, seconds=seconds)
        traces = traces_of(make, warm, partial(poisson, times_s=times_s), rounds)
        rows = [
            row_of(f"poisson, load {load}", where, trace, plain, replay_open(trace), in_s) for trace in traces
        ]
        found.append(middle(rows))
        print(line(found[-1]), flush=True)
    return found


def line(row: Row) -> str:
    return (
        f"{row.where:9} {row.traffic:17} measured {row.measured_ms:6.3f} ms (p99 {row.p99_ms:6.3f}),"
        f" {row.rows_per_batch:5.1f} rows a batch; simulated {row.simulated_ms:6.3f}: ratio {row.ratio:.3f}\n"
        f"{'':27} cost {row.cost_ms:+.3f}, late {row.late_ms:.3f}, in {row.in_ms:.3f},"
        f" out {row.out_ms:.3f}, unasked {row.unasked_ms:.3f} ms; replayed {row.replayed_ms:6.3f} ms,"
        f" {row.replayed_rows_per_batch:5.1f} rows a batch: measured/replayed {row.unexplained:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument(
        "--rounds", type=int, default=7, help="of which the one with the median latency counts"
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    options = BatchOptions()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f}")
    rows = measure("embedded", lambda: Spin("spin", options=options), chosen.seconds, chosen.rounds)
    rows += measure(
        "service", lambda: runner_service(Spin("spin", options=options)), chosen.seconds, chosen.rounds
    )
    if chosen.json:
        chosen.json.parent.mkdir(exist_ok=True)
        table = [{**asdict(row), "ratio": row.ratio, "unexplained": row.unexplained} for row in rows]
        report = {"cores": os.cpu_count(), "load": load, "rows": table}
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
