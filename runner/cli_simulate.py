"""The command line's planning commands: `batching simulate` and `batching profile`.

Both are click commands that `cli.py` adds to its group; nothing here runs before it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..options import BatchOptions
from ..simulation import Cost, FixedWindow, Greedy, Outcome, percentiles_ms, simulate
from ..simulation_inputs import read_cost, read_trace
from .base import Runner

__all__ = ["profile", "register", "simulate_command"]

_DRAWS = 25  # of a cost that varies, for its median


@click.command("simulate")
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--cost", required=True, help="'1ms + 20us*n', or a CSV measured with `batching profile`.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Separate devices.")
@click.option("--max-batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--max-latency-ms", type=float, help="The budget of every call.")
@click.option(
    "--objective", type=click.Choice(["latency", "throughput"]), default="latency", show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture here.")
def simulate_command(
    trace: Path,
    cost: str,
    workers: int,
    max_batch_size: int,
    max_latency_ms: float | None,
    objective: Any,
    seed: int,
    plot: Path | None,
) -> None:
    """What latency, batches and goodput to expect, without running a model.

    TRACE is a CSV: a line for each call, its time in seconds and, if not 1, its rows.
    """
    with _mistakes_in_a_line():
        options = BatchOptions(
            max_batch_size=max_batch_size, max_latency_ms=max_latency_ms, objective=objective
        )
        seconds_of = read_cost(cost)
        arrivals_s, rows = read_trace(trace)

    def outcome_of(policy: Greedy | FixedWindow | None) -> Outcome:
        return simulate(
            arrivals_s, seconds_of, options=options, rows=rows, workers=workers, seed=seed, policy=policy
        )

    engine = outcome_of(None)
    devices = "1 worker" if workers == 1 else f"{workers} workers"
    click.echo(f"{len(arrivals_s)} calls in {engine.duration_s:.4g} s, {devices}, cost {cost}")
    click.echo(f"{'':12}{'mean':>11}{'p50':>11}{'p90':>11}{'p99':>11}  answered   goodput  rows a batch")
    for name, outcome in (("engine", engine), ("greedy", outcome_of(Greedy()))):
        click.echo(_line(name, outcome, max_latency_ms))
    reasons = ", ".join(f"{name} {count}" for name, count in engine.release_reasons.items() if count)
    click.echo(f"batches released: {reasons}")
    if max_latency_ms is not None:
        _warn_if_below_one_row(seconds_of, seed, max_latency_ms)
    if plot is not None:
        with _mistakes_in_a_line():
            _plot(engine, plot)


@contextlib.contextmanager
def _mistakes_in_a_line() -> Iterator[None]:
    """What is wrong with a file or a value is said without a traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _warn_if_below_one_row(cost: Cost, seed: int, budget_ms: float) -> None:
    rng = np.random.default_rng(seed)
    one_row_ms = float(np.median([cost(1, rng) for _ in range(_DRAWS)])) * 1e3
    if one_row_ms <= budget_ms:
        return
    click.echo(
        f"a batch of one row takes {one_row_ms:.3g} ms, which is more than --max-latency-ms, {budget_ms:g}: "
        "no call can be answered in time"
    )


def _line(name: str, outcome: Outcome, budget_ms: float | None) -> str:
    answered_ms = outcome.latency_s[~np.isnan(outcome.latency_s)] * 1e3
    mean_ms = float(answered_ms.mean()) if len(answered_ms) else float("nan")
    in_time = len(answered_ms) if budget_ms is None else int((answered_ms <= budget_ms).sum())
    times = "".join(f"{_digits(value):>8} ms" for value in (mean_ms, *percentiles_ms(outcome)))
    share = len(answered_ms) / max(1, len(outcome.latency_s))
    rows = float(outcome.batch_rows.mean()) if len(outcome.batch_rows) else 0.0
    goodput_hz = in_time / outcome.duration_s if outcome.duration_s else 0.0
    return f"{name:12}{times}  {share:7.1%}  {goodput_hz:7.4g}/s  {rows:.3g}"


def _digits(value: float) -> str:
    """Three digits, and no exponent for what takes seconds."""
    return f"{value:.0f}" if value >= 1000.0 else f"{value:.3g}"


def _plot(outcome: Outcome, path: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise click.ClickException("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 6))
    above.plot(outcome.arrival_s, outcome.latency_s * 1e3, ".", markersize=2)
    above.set_ylabel("latency, ms")
    below.plot(outcome.batch_start_s, outcome.batch_rows, ".", markersize=2)
    below.set_ylabel("rows in the batch")
    below.set_xlabel("time, s")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


@click.command("profile")
@click.argument("target", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--input", "input_path", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--sizes", default="1,2,4,8,16,32,64,128", show_default=True, help="Rows of the batches.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=10, show_default=True, help="Batches of each size."
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("cost.csv"), show_default=True
)
def profile(target: str, input_path: Path, sizes: str, repeat: int, output: Path) -> None:
    """Measure what batches of a runner cost, for `batching simulate --cost`.

    MODULE:ATTRIBUTE is a runner with one batched array argument; --input is a .npy file of rows, which
    are repeated as often as a batch needs. The model runs in this process, without the engine.
    """
    from .cli import _load

    try:
        batches = [int(size) for size in sizes.split(",")]
    except ValueError as error:
        raise click.ClickException(f"--sizes must be numbers with commas between, got {sizes!r}") from error
    if any(size < 1 for size in batches):
        raise click.ClickException(f"--sizes must be 1 or more, got {sizes!r}")
    runner = _load(target)
    if not isinstance(runner, Runner):
        raise click.ClickException(f"{target!r} is a {type(runner).__name__}: only a Runner has batches")
    example = _rows_of(input_path)
    with _mistakes_in_a_line():
        output.touch()  # a place that cannot be written to is told before the model runs
    with asyncio.Runner() as loop:
        measured = _measured(runner, example, batches, repeat, loop)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rows", "seconds"))
        writer.writerows((size, f"{seconds:.9f}") for size, times in measured for seconds in times)
    for size, times in measured:
        click.echo(f"{size:6} rows: {np.median(times) * 1e3:.4g} ms")
    click.echo(f"written to {output}")


def _rows_of(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            example = np.lib.format.read_array(file)
    except ValueError as error:
        raise click.ClickException(f"{path} is no .npy file of numbers") from error
    if example.ndim < 1 or not len(example):
        raise click.ClickException(f"{path} holds no rows: its shape is {example.shape}")
    return example


def _measured(
    runner: Runner, example: Any, sizes: list[int], repeat: int, loop: asyncio.Runner
) -> list[tuple[int, list[float]]]:
    """Seconds of `repeat` batches of each size; hooks that are async def run on `loop`."""

    def finished(value: Any) -> Any:
        return loop.run(_result_of(value)) if inspect.isawaitable(value) else value

    finished(runner._setup())
    try:
        return [
            (size, _seconds(lambda batch: finished(runner._run_batch(batch)), example, size, repeat))
            for size in sizes
        ]
    finally:
        finished(runner._shutdown())


async def _result_of(value: Awaitable[Any]) -> Any:
    return await value


def _seconds(run: Callable[[Any], Any], example: Any, size: int, repeat: int) -> list[float]:
    batch = np.resize(example, (size, *example.shape[1:]))
    run(batch.copy())  # the first batch of a size often allocates or compiles
    times = []
    for _ in range(repeat):
        fresh = batch.copy()
        began = time.perf_counter()
        run(fresh)
        times.append(time.perf_counter() - began)
    return times


def register(group: click.Group) -> None:
    """Adds both commands to the command line's group."""
    group.add_command(simulate_command)
    group.add_command(profile)
