"""The wait rule in words, told to the scheduler with a clock that the test moves."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest

from batching._native.scheduler import Scheduler

US, MS = 1_000, 1_000_000


class Engine:
    """A scheduler with workers whose batches end when the test says so."""

    def __init__(self, workers: int = 1, cost=lambda rows: MS + 20 * US * rows, **options) -> None:
        self.scheduler = Scheduler(**options)
        self.now = 0
        self.workers = workers
        self.cost = cost
        self.ends: dict[int, int] = {}
        self.ids: list[int] = []
        self.tags = itertools.count(1)

    def call(self, count: int = 1, deadline_ns: int | None = None):
        for _ in range(count):
            admission = self.scheduler.admit(self.now, 1, deadline_ns=deadline_ns, tag=next(self.tags))
            self.ids.append(admission.id)

    def decide(self):
        decision = self.scheduler.decide(self.now, self.workers - len(self.ends), self.workers)
        self.scheduler.expired()
        if decision.action == "run":
            self.ends[decision.batch] = self.now + self.cost(decision.padded_rows)
        return decision

    def finish(self) -> int:
        """Ends the batch that is due first; how many calls it answered."""
        batch = min(self.ends, key=self.ends.__getitem__)
        self.now = self.ends.pop(batch)
        return len(self.scheduler.finished(batch, self.now))

    def run(self):
        """The next batch, at the time it is released; every call has been made."""
        while (decision := self.decide()).action != "run":
            assert decision.until_ns is not None
            self.now = decision.until_ns
        return decision

    def rounds(self, count: int, callers: int, apart_ns: int = 2 * US) -> None:
        """`callers` call, one after another, as soon as they are answered; so many rounds."""
        self.call(callers)
        for _ in range(count):
            if not self.ends:
                self.run()
            for _ in range(self.finish()):
                self.now += apart_ns
                self.call()
                self.decide()

    def drain(self) -> None:
        """Runs what is queued; nobody calls again."""
        while self.scheduler.statistics()["queued_calls"] or self.ends:
            if len(self.ends) == self.workers or (self.ends and self.decide().action != "run"):
                self.finish()
            elif not self.ends:
                self.run()
            self.scheduler.check()

    def arrive(self, times_ns) -> list[int]:
        """Calls at these times; every batch that starts meanwhile, by its start."""
        starts = []
        for at_ns in times_ns:
            while True:
                until_ns = self.start(starts)
                due_ns = min([*self.ends.values(), at_ns if until_ns is None else until_ns], default=at_ns)
                if due_ns >= at_ns:
                    break
                self.now = due_ns
                if due_ns in self.ends.values():
                    self.finish()
            self.now = at_ns
            self.call()
        return starts

    def start(self, starts: list[int]) -> int | None:
        """Runs what the scheduler wants to run now; until when it waits then."""
        while (decision := self.decide()).action == "run":
            starts.append(self.now)
        return decision.until_ns


@pytest.fixture
def engine():
    return Engine()


def learn_two_sizes(engine: Engine) -> None:
    for count in (1, 4, 1, 4):
        engine.call(count)
        engine.drain()
        engine.now += 1000 * MS


def test_it_holds_while_the_callers_of_the_last_batch_are_still_coming_back(engine):
    engine.rounds(30, callers=8)
    engine.drain()
    engine.call(4)
    held = engine.decide()
    assert held.action == "wait"
    assert held.until_ns - engine.now < MS


def test_it_runs_at_once_when_everyone_is_here(engine):
    engine.rounds(30, callers=8)
    engine.drain()
    engine.call(8)
    decision = engine.decide()
    assert (decision.action, decision.rows, decision.reason) == ("run", 8, "everyone_here")


def test_those_who_do_not_come_back_are_not_waited_for_long(engine):
    engine.rounds(30, callers=8)
    engine.drain()
    engine.call(4)
    began = engine.now
    decision = engine.run()
    assert decision.reason == "hold_expired"
    assert engine.now - began < MS


def test_a_lone_caller_never_waits(engine):
    for _ in range(200):
        engine.call()
        assert engine.decide().action == "run"
        engine.finish()
        engine.now += 50 * US


def test_after_a_crowd_a_lone_caller_waits_no_more_within_fifty_batches(engine):
    engine.rounds(100, callers=64)
    engine.drain()
    waits = []
    for _ in range(100):
        engine.call()
        called = engine.now
        engine.run()
        waits.append(engine.now - called)
        engine.finish()
    assert max(waits[50:]) == 0


def test_light_traffic_without_a_pattern_is_never_held(engine):
    gaps_ms = (7, 31, 12, 55, 3, 90, 21, 44, 16, 5)
    for gap in gaps_ms * 20:
        engine.call()
        assert engine.decide().action == "run"
        engine.finish()
        engine.now += gap * MS


def test_two_callers_that_alternate_are_brought_together():
    engine = Engine()
    engine.rounds(100, callers=2)
    sizes = engine.scheduler.statistics()["batch_rows"]
    assert sizes[1] > 80  # of two rows


def test_max_wait_caps_a_hold(engine):
    engine = Engine(max_wait_ns=5 * US)
    engine.rounds(30, callers=8, apart_ns=1 * US)
    engine.drain()
    engine.call(2)
    began = engine.now
    decision = engine.run()
    assert engine.now - began <= 5 * US
    assert decision.reason in ("cap", "hold_expired")


def test_the_throughput_objective_waits_until_the_tightest_deadline_allows_no_more():
    engine = Engine(objective="throughput")
    learn_two_sizes(engine)
    deadline = engine.now + 20 * MS
    engine.call(3, deadline_ns=deadline)
    engine.call(3)
    decision = engine.run()
    assert (decision.rows, decision.reason) == (6, "budget")
    end = engine.now + engine.cost(6)
    assert deadline - 2 * MS < end <= deadline - 50 * US  # timers are late


def test_a_full_batch_is_not_held_by_the_throughput_objective():
    engine = Engine(objective="throughput", max_batch_rows=4)
    learn_two_sizes(engine)
    engine.call(4, deadline_ns=engine.now + 1000 * MS)
    decision = engine.decide()
    assert (decision.action, decision.reason) == ("run", "full")


@pytest.mark.parametrize("workers", [1, 2])
def test_groups_that_share_workers_are_all_released_early_enough_by_the_throughput_objective(workers):
    engine = Engine(workers=workers, objective="throughput")
    learn_two_sizes(engine)
    deadline_ns = engine.now + 50 * MS
    for group in range(5):
        for _ in range(4):
            engine.scheduler.admit(engine.now, 1, group=group, deadline_ns=deadline_ns, tag=next(engine.tags))
    began_ns = engine.now
    while engine.ends or engine.scheduler.statistics()["queued_calls"]:
        decision = engine.decide()
        if decision.action == "run":
            continue
        if engine.ends and (not decision.until_ns or min(engine.ends.values()) <= decision.until_ns):
            engine.finish()
        else:
            engine.now = decision.until_ns
    assert engine.scheduler.statistics()["expired"] == 0
    assert began_ns + 40 * MS < engine.now <= deadline_ns


@pytest.mark.parametrize("calls", [1, 3])
def test_the_throughput_objective_without_deadlines_waits_for_as_long_as_it_may(calls):
    engine = Engine(objective="throughput", max_wait_ns=7 * MS)
    learn_two_sizes(engine)
    engine.call(calls)
    called_ns = engine.now
    decision = engine.run()
    assert (decision.rows, decision.reason, engine.now - called_ns) == (calls, "cap", 7 * MS)


def test_a_hold_leaves_time_for_the_batch_before_the_tightest_deadline(engine):
    engine.rounds(60, callers=8, apart_ns=100 * US)
    engine.drain()
    engine.call(4, deadline_ns=engine.now + 1300 * US)
    engine.run()
    assert engine.ends
    assert max(engine.ends.values()) <= engine.now + 1300 * US


@pytest.mark.parametrize(("queued", "taken"), [(17, 16), (31, 31)])
def test_padding_up_and_releasing_less_are_weighed_by_cost(queued, taken):
    engine = Engine(allowed_rows=(8, 16, 32), max_batch_rows=32, cost=lambda rows: 32 * MS + MS * rows)
    for _ in range(4):
        for count in (8, 16, 32):
            engine.call(count)
            engine.drain()
            engine.now += 1000 * MS
    engine.call(queued)
    decision = engine.run()
    assert decision.rows == taken


@pytest.mark.parametrize(
    ("allowed", "queued", "taken"), [((6, 24), 7, 6), ((6, 24), 9, 9), ((6, 24), 22, 22), ((10, 40), 13, 10)]
)
def test_any_allowed_size_is_weighed_not_only_powers_of_two(allowed, queued, taken):
    engine = Engine(
        allowed_rows=allowed,
        max_batch_rows=allowed[-1],
        cost=lambda rows: MS * rows + (32 if allowed[0] == 6 else 5) * MS,
    )
    for _ in range(6):
        for count in allowed:
            engine.call(count)
            engine.drain()
            engine.now += 1000 * MS
    engine.call(queued)
    assert engine.run().rows == taken


def test_a_burst_is_shared_by_free_workers_when_that_is_faster():
    engine = Engine(workers=4, cost=lambda rows: 2 * MS + MS * rows)
    learn_two_sizes(engine)
    engine.call(16)
    sizes = [engine.run().rows for _ in range(4)]
    assert sizes == [4, 4, 4, 4]


def test_workers_start_evenly_rather_than_one_with_everything_and_another_with_little():
    engine = Engine(workers=4)
    engine.arrive(range(0, 100 * MS, 14 * US))
    starts = engine.arrive(range(100 * MS, 200 * MS, 14 * US))
    gaps = sorted(after - before for before, after in itertools.pairwise(starts))
    assert gaps[len(gaps) // 20] > gaps[-len(gaps) // 20] / 3


class Patient(Engine):
    """Counts how often the scheduler puts the same calls off, nothing having happened."""

    asked = most_asked = 0

    def call(self, count: int = 1, deadline_ns: int | None = None):
        self.asked = 0
        super().call(count, deadline_ns)

    def finish(self) -> int:
        self.asked = 0
        return super().finish()

    def decide(self):
        decision = super().decide()
        self.asked = self.asked + 1 if decision.action == "wait" else 0
        self.most_asked = max(self.most_asked, self.asked)
        return decision


def test_a_start_that_is_put_off_is_not_put_off_again_and_again():
    engine = Patient(workers=8)
    engine.arrive(np.cumsum(np.random.default_rng(1).exponential(17 * US, 5000)).astype(int))
    assert 1 < engine.most_asked < 12


def test_nobody_is_held_for_longer_than_his_batch_takes(engine):
    engine.rounds(200, callers=64, apart_ns=10 * US)
    engine.drain()
    for _ in range(20):
        engine.now += 20 * MS
        engine.call()
        called_ns = engine.now
        engine.run()
        assert engine.now - called_ns <= 1.05 * engine.cost(1)
        engine.finish()


class Held(Engine):
    """How long calls were held at most, from the first decision to hold them on, in times of their batch."""

    since_ns: int | None = None
    longest = 0.0

    def decide(self):
        is_free = self.workers > len(self.ends)
        decision = super().decide()
        if decision.action != "wait" or not is_free:
            self.since_ns = None
            return decision
        if self.since_ns is None:
            self.since_ns = self.now
        batch_ns = self.cost(self.scheduler.statistics()["queued_rows"])
        self.longest = max(self.longest, (decision.until_ns - self.since_ns) / batch_ns)
        return decision


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hold_is_as_long_as_its_batch_at_most_from_when_it_began_whoever_comes_or_ends_meanwhile(workers):
    engine = Held(workers=workers, cost=lambda rows: 500 * US + 250 * US * -(-rows // 8))
    apart_ns = engine.cost(8) / 8 / workers / (0.5 if workers == 1 else 0.7)
    times = np.cumsum(np.random.default_rng(1).exponential(apart_ns, 3000)).astype(int)
    engine.arrive(times[:1500])  # the steps are known then, and full ones are waited for
    engine.longest = 0.0
    engine.arrive(times[1500:])
    assert 0.95 < engine.longest < 1.02


def test_a_hold_of_calls_that_left_is_not_that_of_those_who_come_later(engine):
    engine.rounds(30, callers=8)
    engine.drain()
    engine.call(4)
    assert engine.decide().action == "wait"
    for call in list(engine.ids):
        engine.scheduler.cancel(call)
    before = engine.scheduler.statistics()["policy"]["held_ns"]
    engine.now += 10_000 * MS
    engine.call(8)
    assert engine.run().reason != "hold_expired"
    assert engine.scheduler.statistics()["policy"]["held_ns"] - before < MS


@pytest.mark.parametrize("row_ns", [0, 10 * US])
def test_a_burst_is_not_torn_over_free_workers_when_one_batch_is_as_fast(row_ns):
    engine = Engine(workers=4, cost=lambda rows: 5 * MS + row_ns * rows)
    learn_two_sizes(engine)
    engine.call(16)
    assert engine.run().rows == 16


def answer_callers_of(keys: int, callers: int, workers: int, rule: str) -> float:
    """Mean latency, in ms, of callers that think for about half a millisecond; each calls with one key."""
    scheduler, rng = Scheduler(rule=rule), np.random.default_rng(1)
    calls = [(round(rng.uniform(0, 0.5 * MS)), caller) for caller in range(callers)]
    ends, called, latencies = [], {}, []
    heapq.heapify(calls)
    until_ns = None
    while len(latencies) < 4000:
        now = min(at[0][0] for at in (calls, ends, [(until_ns,)] if until_ns else []) if at)
        while calls and calls[0][0] <= now:
            _, caller = heapq.heappop(calls)
            scheduler.admit(now, 1, group=caller % keys, tag=caller)
            called[caller] = now
        while ends and ends[0][0] <= now:
            for event in scheduler.finished(heapq.heappop(ends)[1], now):
                latencies.append(now - called[event.tag])
                heapq.heappush(calls, (now + round(rng.uniform(0.47, 0.53) * MS), event.tag))
        while (
            len(ends) < workers
            and (decision := scheduler.decide(now, workers - len(ends), workers)).action == "run"
        ):
            heapq.heappush(ends, (now + MS + 20 * US * decision.rows, decision.batch))
        until_ns = decision.until_ns if len(ends) < workers else None
    return float(np.mean(latencies)) / MS


def test_the_workers_are_shared_by_the_keys_that_have_callers():
    for keys in (2, 4):
        learned, greedy = (answer_callers_of(keys, 64, 2, rule) for rule in ("learned", "greedy"))
        assert learned < 1.02 * greedy


def cost_of(engine: Engine, rows: int) -> float:
    learned = engine.scheduler.statistics()["policy"]
    return learned["cost_base_ns"] + learned["cost_row_ns"] * rows


def run_sizes(engine: Engine, sizes) -> None:
    for count in sizes:
        engine.call(count)
        engine.drain()
        engine.now += 100 * MS


def test_the_line_of_the_cost_is_learned(engine):
    run_sizes(engine, (1, 8, 3, 20, 5, 12) * 3)
    learned = engine.scheduler.statistics()["policy"]
    assert learned["calibrated"]
    assert learned["cost_base_ns"] == pytest.approx(MS, rel=0.02)
    assert learned["cost_row_ns"] == pytest.approx(20 * US, rel=0.05)


def test_a_change_of_regime_is_followed_within_fifty_batches(engine):
    run_sizes(engine, (1, 8, 3, 20) * 20)
    engine.cost = lambda rows: 3 * (MS + 20 * US * rows)
    run_sizes(engine, (8, 3, 20, 1) * 12)
    assert cost_of(engine, 10) == pytest.approx(3 * 1.2 * MS, rel=0.1)


def test_one_batch_a_hundred_times_slower_is_shrugged_off(engine):
    run_sizes(engine, (1, 8, 3, 20) * 20)
    before = cost_of(engine, 10)
    usual, engine.cost = engine.cost, lambda rows: 100 * (MS + 20 * US * rows)
    run_sizes(engine, (8,))
    engine.cost = usual
    assert cost_of(engine, 10) == pytest.approx(before, rel=0.05)


def test_batches_that_raise_teach_nothing_about_the_cost(engine):
    run_sizes(engine, (1, 8, 3, 20) * 20)
    before = cost_of(engine, 10)
    for _ in range(50):
        engine.call()
        batch = engine.run().batch
        engine.now += 10 * US
        engine.scheduler.finished(batch, engine.now, "raised")
        engine.ends.clear()
    assert cost_of(engine, 10) == before


def test_a_long_stretch_of_equal_batches_keeps_the_slope(engine):
    run_sizes(engine, (1, 8, 3, 20) * 5)
    run_sizes(engine, (8,) * 500)
    assert engine.scheduler.statistics()["policy"]["cost_row_ns"] == pytest.approx(20 * US, rel=0.1)


def test_nothing_is_calibrated_before_a_second_size(engine):
    run_sizes(engine, (4,) * 10)
    assert not engine.scheduler.statistics()["policy"]["calibrated"]


def test_statistics_say_what_was_predicted_held_and_learned(engine):
    engine.rounds(100, callers=8)
    statistics = engine.scheduler.statistics()
    learned, actual_ns = statistics["policy"], sum(statistics["actual_ns"].values())
    assert actual_ns > 0
    assert sum(statistics["predicted_ns"].values()) == pytest.approx(actual_ns, rel=0.1)
    assert learned["held"] > 50
    assert 0 < learned["held_ns"] < 100 * MS
    assert learned["return_fraction"] > 0.9
    assert learned["return_median_ns"] < 50 * US


def test_a_held_group_is_not_waited_for_by_others(engine):
    engine.rounds(30, callers=8)
    engine.drain()
    engine.call(4)
    engine.scheduler.admit(engine.now, 1, group=1, tag=999)
    assert engine.decide().action == "run"
