"""The command line's planning commands: `batching simulate` and `batching profile`.

Both are click commands that `cli.py` adds to its group; nothing here runs before it is asked.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..options import BatchOptions
from ..simulation import FixedWindow, Greedy, Outcome, percentiles_ms, simulate
from ..simulation_inputs import read_cost, read_trace

__all__ = ["profile", "register", "simulate_command"]


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
    try:
        options = BatchOptions(
            max_batch_size=max_batch_size, max_latency_ms=max_latency_ms, objective=objective
        )
        seconds_of = read_cost(cost)
        arrivals_s, rows = read_trace(trace)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error

    def outcome_of(policy: Greedy | FixedWindow | None) -> Outcome:
        return simulate(
            arrivals_s, seconds_of, options=options, rows=rows, workers=workers, seed=seed, policy=policy
        )

    engine = outcome_of(None)
    click.echo(f"{len(arrivals_s)} calls in {engine.duration_s:.4g} s, {workers} workers, cost {cost}")
    click.echo(f"{'':12}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}  answered   goodput  rows a batch")
    for name, outcome in (("engine", engine), ("greedy", outcome_of(Greedy()))):
        click.echo(_line(name, outcome, max_latency_ms))
    reasons = ", ".join(f"{name} {count}" for name, count in engine.release_reasons.items() if count)
    click.echo(f"batches released: {reasons}")
    if plot is not None:
        _plot(engine, plot)


def _line(name: str, outcome: Outcome, budget_ms: float | None) -> str:
    answered_ms = outcome.latency_s[~np.isnan(outcome.latency_s)] * 1e3
    mean_ms = float(answered_ms.mean()) if len(answered_ms) else float("nan")
    in_time = len(answered_ms) if budget_ms is None else int((answered_ms <= budget_ms).sum())
    times = "".join(f"{value:>7.3g} ms" for value in (mean_ms, *percentiles_ms(outcome)))
    share = len(answered_ms) / max(1, len(outcome.latency_s))
    rows = float(outcome.batch_rows.mean()) if len(outcome.batch_rows) else 0.0
    goodput_hz = in_time / outcome.duration_s if outcome.duration_s else 0.0
    return f"{name:12}{times}  {share:7.1%}  {goodput_hz:7.4g}/s  {rows:.3g}"


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
    example = np.load(input_path)
    if example.ndim < 1 or not len(example):
        raise click.ClickException(f"{input_path} holds no rows: its shape is {example.shape}")
    runner._setup()
    try:
        measured = [(size, _seconds(runner._run_batch, example, size, repeat)) for size in batches]
    finally:
        runner._shutdown()
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rows", "seconds"))
        writer.writerows((size, f"{seconds:.9f}") for size, times in measured for seconds in times)
    for size, times in measured:
        click.echo(f"{size:6} rows: {np.median(times) * 1e3:.4g} ms")
    click.echo(f"written to {output}")


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
