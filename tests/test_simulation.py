"""The simulator: the same scheduler, a clock of its own, and small independent models to agree with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batching import BatchOptions
from batching.simulation import ClosedLoop, FixedWindow, Greedy, simulate

MOST = 8


def cost(rows, rng=None):
    return 0.001 + 0.0005 * rows


def trace(calls=300, rate=3000.0, seed=3):
    return np.round(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, calls)), 9)


def by_hand(times, workers, wait_s, size):
    """Latencies of a queue with a window (wait 0: greedy), batch by batch, in plain Python."""
    free, head, latency = [0.0] * workers, 0, []
    while head < len(times):
        slot = min(range(workers), key=free.__getitem__)
        full = times[head + size - 1] if head + size <= len(times) else math.inf
        start = max(free[slot], times[head], min(times[head] + wait_s, full))
        count = min(MOST, int(np.searchsorted(times, start + 1e-12, side="right")) - head)
        free[slot] = start + cost(count)
        latency += [free[slot] - times[head + i] for i in range(count)]
        head += count
    return np.array(latency)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("policy", "wait_s", "size"), [(Greedy(), 0.0, 1), (FixedWindow(wait_ms=2.0, size=4), 0.002, 4)]
)
def test_greedy_and_fixed_windows_agree_with_a_model_by_hand(workers, policy, wait_s, size):
    times = trace()
    outcome = simulate(times, cost, options=BatchOptions(max_batch_size=MOST), workers=workers, policy=policy)
    assert outcome.latency_s == pytest.approx(by_hand(times, workers, wait_s, size), abs=1e-6)


def closed(seed):
    loop = ClosedLoop(callers=5, think=lambda rng: rng.exponential(0.001))
    return simulate(loop, lambda rows, rng: cost(rows) * rng.uniform(0.9, 1.1), requests=500, seed=seed)


def test_the_same_seed_gives_the_same_outcome_and_another_does_not():
    assert np.array_equal(closed(1).latency_s, closed(1).latency_s)
    assert not np.array_equal(closed(1).latency_s, closed(2).latency_s)


def compared(arrivals, cost, seed=3, **more):
    """Mean latency of the engine's own rule as a multiple of that of greedy."""
    ours, greedy = (simulate(arrivals, cost, policy=policy, seed=seed, **more) for policy in (None, Greedy()))
    return ours.latency_s.mean() / greedy.latency_s.mean()


def test_steps_in_the_cost_are_found_and_their_tops_are_filled():
    def steps(rows, rng):
        return 0.001 + 0.00002 * (1 << (rows - 1).bit_length())

    assert compared(trace(20_000, rate=25_000.0), steps) < 0.85


@pytest.mark.parametrize("rate", [10_000.0, 20_000.0, 28_000.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_in_the_cost_is_not_taken_for_steps(rate, seed):
    def noisy(rows, rng):
        return (0.001 + 0.00002 * rows) * rng.lognormal(0.0, 0.3)

    assert compared(trace(20_000, rate=rate), noisy, seed=seed) < 1.05


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_several_workers_share_calls_that_come_at_random(workers):
    line = trace(20_000, rate=15_000.0 * workers)
    assert compared(line, lambda rows, rng: 0.001 + 0.00002 * rows, workers=workers) < 0.92


def test_workers_are_separate_devices():
    times = np.zeros(2)
    one, two = (
        simulate(times, cost, options=BatchOptions(max_batch_size=1), workers=workers) for workers in (1, 2)
    )
    assert one.latency_s == pytest.approx([cost(1), 2 * cost(1)])
    assert two.latency_s == pytest.approx([cost(1), cost(1)])


def test_rows_fill_batches():
    outcome = simulate(np.zeros(4), cost, rows=[3, 3, 3, 3], options=BatchOptions(max_batch_size=6))
    assert outcome.batch_rows.sum() == 12
    assert outcome.batch_rows.max() <= 6


def test_refused_and_expired_calls_have_no_latency_and_nobody_is_answered_late():
    options = BatchOptions(max_batch_size=MOST, max_latency_ms=20)
    outcome = simulate(trace(calls=3000), cost, options=options)
    answered = outcome.latency_s[~np.isnan(outcome.latency_s)]
    assert 0 < len(answered) < 3000
    assert answered.max() <= 0.020
    assert outcome.arrival_s == pytest.approx(trace(calls=3000))


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_an_overloaded_engine_answers_as_many_in_time_as_full_batches_could(load):
    def steps(rows, rng=None):
        return 0.001 + 0.00002 * (1 << (rows - 1).bit_length())

    full_s = steps(128)
    calls = trace(50_000, rate=load * 128 / full_s)
    outcome = simulate(calls, steps, options=BatchOptions(max_latency_ms=5e3 * full_s))
    answered = (outcome.latency_s <= 5 * full_s).sum()
    assert answered == (~np.isnan(outcome.latency_s)).sum()
    assert answered > 0.96 * (calls[-1] + 5 * full_s) * 128 / full_s


@pytest.mark.parametrize("seed", [0, 1])
def test_a_budget_is_used_up_no_further_than_a_cost_that_varies_allows(seed):
    def noisy(rows, rng):
        return (0.001 + 0.00002 * rows) * max(0.3, 1 + 0.2 * rng.normal())

    options = BatchOptions(max_latency_ms=20, objective="throughput")
    outcome = simulate(trace(6000, rate=2000.0), noisy, options=options, seed=seed)
    assert outcome.batch_rows.mean() > 30
    assert np.isfinite(outcome.latency_s).mean() > 0.99


def test_the_queue_is_bounded_only_if_the_options_say_so():
    crowd = np.zeros(100)
    bounded = simulate(crowd, cost, options=BatchOptions(max_batch_size=MOST, max_queue_rows=MOST))
    assert np.isnan(bounded.latency_s).any()
    assert not np.isnan(simulate(np.zeros(70_000), cost).latency_s).any()


def test_a_closed_loop_of_one_has_the_latency_of_its_batches():
    outcome = simulate(ClosedLoop(1, lambda rng: 0.001), cost, requests=100)
    assert outcome.latency_s == pytest.approx(np.full(100, cost(1)))
    assert outcome.duration_s == pytest.approx(100 * (0.001 + cost(1)))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_callers_that_think_for_most_of_a_batch_are_waited_for(share):
    loop = ClosedLoop(12, lambda rng: share * 0.001 * rng.uniform(0.9, 1.0))
    outcome = simulate(loop, lambda rows, rng: 0.001 if rows <= 16 else 0.002, requests=12_000)
    assert outcome.latency_s.mean() < 1.1 * 0.001
    assert np.median(outcome.batch_rows) == 12


def test_the_default_bound_of_the_queue_is_none_and_every_other_is_one():
    crowd = np.zeros(70_000)
    for options, most in (
        (None, 70_000),
        (BatchOptions(), 70_000),
        (BatchOptions(max_queue_rows=65_535), 65_536),
    ):
        outcome = simulate(crowd, lambda rows, rng: 1e-3, options=options)
        assert (~np.isnan(outcome.latency_s)).sum() == most  # one runs when the bound is reached


def test_an_outcome_tells_of_the_last_releases():
    outcome = simulate(
        np.arange(300.0), lambda rows, rng: 1e-3 * rows, options=BatchOptions(max_batch_size=4)
    )
    releases = outcome.statistics.recent_releases
    assert len(releases) == 256
    assert [release.number for release in releases] == list(range(45, 301))
    last = releases[-1]
    assert last.released_s == 299.0
    assert (last.reason, last.outcome, last.rows) == ("worker_free", "ok", 1)
    assert last.predicted_cost_ms == pytest.approx(last.actual_cost_ms)
    assert last.held_ms == 0


def test_release_reasons_count_every_batch():
    outcome = closed(1)
    assert sum(outcome.release_reasons.values()) == len(outcome.batch_rows) == len(outcome.batch_start_s)


@pytest.mark.parametrize(
    "arrivals",
    [[1.0, 0.5], [-1.0], [float("nan")], np.zeros((2, 2))],
    ids=["descending", "negative", "nan", "2d"],
)
def test_arrivals_that_are_no_trace_are_refused(arrivals):
    with pytest.raises(ValueError, match="arrivals"):
        simulate(arrivals, cost)


def test_a_cost_that_is_no_duration_is_refused_with_its_value():
    with pytest.raises(ValueError, match="-1"):
        simulate([0.0], lambda rows, rng: -1)


def test_an_error_in_the_cost_reaches_the_caller():
    def broken(rows, rng):
        raise LookupError("no such size")

    with pytest.raises(LookupError, match="no such size"):
        simulate([0.0], broken)
