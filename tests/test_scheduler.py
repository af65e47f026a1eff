"""What the scheduler promises, one fact a test; the native one and its twin keep the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import reference_scheduler as reference

from batching import _native
from batching._native import scheduler as native

SECOND = 1_000_000_000


@pytest.fixture(params=["native", "reference"])
def make(request):
    """Makes a scheduler (greedy unless told otherwise) that is checked and freed at the end."""
    made = []

    def make(**options):
        kind = native.Scheduler if request.param == "native" else reference.Scheduler
        made.append(kind(**{"rule": "greedy", **options}))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.check()
        scheduler.close()


def admit(scheduler, *rows, now_ns=0, **kwargs):
    """Calls of so many rows; their ids. The tag of each is its place, from 0."""
    admissions = [scheduler.admit(now_ns, n, tag=i, **kwargs) for i, n in enumerate(rows)]
    assert {admission.verdict for admission in admissions} == {"admitted"}
    return [admission.id for admission in admissions]


def run(scheduler, now_ns=0):
    decision = scheduler.decide(now_ns, 1, 1)
    assert decision.action == "run"
    return decision


def tags(decision):
    return [part[1] for part in decision.parts]


def outcomes(settled):
    return {entry.tag: entry.outcome for entry in settled}


def run_all(scheduler, model):
    """One worker until nothing is left; `model(tags)` says how a batch ends. What ran, and the verdicts."""
    batches, verdicts = [], {}
    while (decision := scheduler.decide(0, 1, 1)).action == "run":
        batches.append(tags(decision))
        for entry in scheduler.finished(decision.batch, 0, model(tags(decision))):
            if entry.outcome not in ("rerun", "part", "gone"):
                assert entry.tag not in verdicts
                verdicts[entry.tag] = entry.outcome
    return batches, verdicts


# ---- forming batches ---------------------------------------------------------


def test_calls_that_came_while_the_worker_was_busy_run_together(make):
    s = make()
    admit(s, 1)
    first = run(s)
    admit(s, 1, 1, 1)
    assert s.decide(0, idle_slots=0).action == "idle"
    s.finished(first.batch, 5)
    assert run(s, 5).rows == 3


def test_an_empty_scheduler_is_idle_and_sets_no_timer(make):
    decision = make().decide(0)
    assert (decision.action, decision.until_ns) == ("idle", None)


def test_six_and_six_rows_do_not_share_a_batch_of_ten(make):
    s = make(max_batch_rows=10)
    admit(s, 6, 6)
    assert [tags(run(s)), tags(run(s))] == [[0], [1]]


def test_within_one_client_nobody_overtakes(make):
    s = make(max_batch_rows=10)
    admit(s, 6, 6, 1)
    assert [tags(run(s)), tags(run(s))] == [[0], [1, 2]]


def test_a_call_larger_than_a_batch_is_cut_and_its_last_part_joins_others(make):
    s = make(max_batch_rows=5)
    admit(s, 12, 1, 2)
    batches = [run(s) for _ in range(3)]
    assert [[part[1:] for part in batch.parts] for batch in batches] == [
        [(0, 0, 5)],
        [(0, 5, 5)],
        [(0, 10, 2), (1, 0, 1), (2, 0, 2)],
    ]
    assert outcomes(s.finished(batches[2].batch, 1)) == {0: "part", 1: "answered", 2: "answered"}
    assert outcomes(s.finished(batches[0].batch, 2)) == {0: "part"}
    assert outcomes(s.finished(batches[1].batch, 3)) == {0: "answered"}


def test_the_first_part_that_fails_fails_the_call_and_cancels_the_rest(make):
    s = make(max_batch_rows=5)
    admit(s, 12, 2)
    first, second = run(s), run(s)
    assert outcomes(s.finished(first.batch, 1, "raised")) == {0: "failed"}
    assert outcomes(s.finished(second.batch, 1)) == {0: "gone"}
    assert tags(run(s, 1)) == [1]


def test_a_call_of_no_rows_joins_others_and_runs_alone_if_there_are_none(make):
    s = make(max_batch_rows=4)
    admit(s, 4, 0)
    both = run(s)
    assert (tags(both), both.rows) == ([0, 1], 4)
    admit(s, 0)
    alone = run(s)
    assert (tags(alone), alone.rows) == ([0], 0)
    assert outcomes(s.finished(alone.batch, 1)) == {0: "answered"}


def test_groups_never_share_a_batch(make):
    s = make()
    admit(s, 1, 1, group=7)
    admit(s, 1, group=8)
    assert [(batch.group, batch.rows) for batch in (run(s), run(s))] == [(7, 2), (8, 1)]


def test_one_call_a_batch_neither_joins_nor_cuts(make):
    s = make(max_batch_rows=4, one_call_a_batch=True)
    admit(s, 1, 9, 0)
    assert [batch.rows for batch in (run(s), run(s), run(s))] == [1, 9, 0]


def test_padding_goes_to_the_next_allowed_size(make):
    s = make(max_batch_rows=8, allowed_rows=(1, 4, 8))
    admit(s, 3)
    assert run(s).padded_rows == 4


def test_a_batch_that_runs_keeps_old_limits_and_the_next_has_new_ones(make):
    s = make(max_batch_rows=8)
    admit(s, 8, 8)
    assert run(s).rows == 8
    s.set_options(max_batch_rows=3)
    assert [run(s).rows for _ in range(3)] == [3, 3, 2]


def test_a_sealed_batch_is_cut_when_the_limit_was_lowered_meanwhile(make):
    s = make(max_batch_rows=8)
    admit(s, 5, 1, 1)
    s.finished(run(s).batch, 0, "died")
    s.set_options(max_batch_rows=3)
    assert [[part[1:] for part in run(s).parts] for _ in range(2)] == [
        [(0, 0, 3)],
        [(0, 3, 2), (1, 0, 1)],
    ]
    assert tags(run(s)) == [2]


# ---- waiting -------------------------------------------------------------------


def test_a_fixed_window_ends_at_the_tenth_call_and_starts_afresh_after_an_idle_gap(make):
    s = make(rule="fixed", fixed_rows=10, fixed_wait_ns=1000 * SECOND)
    for start_ns in (0, 5000):
        admit(s, *[1] * 9, now_ns=start_ns)
        held = s.decide(start_ns)
        assert (held.action, held.until_ns) == ("wait", start_ns + 1000 * SECOND)
        admit(s, 1, now_ns=start_ns + 1)
        released = run(s, start_ns + 1)
        assert (released.rows, released.reason) == (10, "full")
        s.finished(released.batch, start_ns + 2)


def test_a_batch_of_one_is_never_held(make):
    s = make(rule="fixed", max_batch_rows=1, fixed_rows=1, fixed_wait_ns=1000 * SECOND)
    admit(s, 1)
    assert run(s).rows == 1


def test_a_fixed_window_ends_exactly_on_time(make):
    s = make(rule="fixed", fixed_wait_ns=100)
    admit(s, 1, now_ns=50)
    assert s.decide(149) == s.decide(60)
    assert run(s, 150).reason == "cap"


def test_max_wait_caps_a_hold(make):
    s = make(rule="fixed", fixed_wait_ns=100, max_wait_ns=30)
    admit(s, 1)
    assert s.decide(0).until_ns == 30


def test_a_held_group_does_not_block_one_that_is_due(make):
    s = make(rule="fixed", fixed_rows=3, fixed_wait_ns=100)
    admit(s, 1, group=1)
    admit(s, 1, 1, 1, now_ns=10, group=2)
    assert run(s, 10).group == 2
    assert s.decide(10).until_ns == 100


def test_nothing_is_held_while_very_many_groups_wait(make):
    s = make(rule="fixed", fixed_wait_ns=100)
    for group in range(65):
        admit(s, 1, group=group)
    assert (run(s).group, s.decide(0).action) == (0, "wait")


# ---- fairness --------------------------------------------------------------------


def test_a_flood_of_one_client_leaves_the_other_its_share_of_the_next_batch(make):
    s = make(max_batch_rows=10)
    for tag in range(100):
        s.admit(0, 1, client=1, tag=tag)
    for tag in range(100, 105):
        s.admit(1, 1, client=2, tag=tag)
    assert sum(tag >= 100 for tag in tags(run(s, 1))) == 5


def test_clients_get_rows_not_calls_in_equal_measure(make):
    s = make(max_batch_rows=12)
    for _ in range(40):
        s.admit(0, 4, client=1, tag=1)
        s.admit(0, 1, client=2, tag=2)
    rows = {1: 0, 2: 0}
    for _ in range(6):
        for _, tag, _, count in run(s).parts:
            rows[tag] += count
    assert abs(rows[1] - rows[2]) <= 4


def test_a_call_passed_over_for_want_of_room_leads_the_next_batch(make):
    s = make(max_batch_rows=10)
    s.admit(0, 6, client=1, tag=1)
    s.admit(0, 6, client=2, tag=2)
    for tag in (3, 4, 5):
        s.admit(0, 2, client=3, tag=tag)
    # Credit comes three rows a turn: 3 at once, 1 in the second turn, and 2 would fit no more.
    assert tags(run(s)) == [3, 1, 4]
    assert tags(run(s)) == [2, 5]


def test_a_large_call_is_not_starved_by_small_ones(make):
    s = make(max_batch_rows=10)
    s.admit(0, 10, client=1, tag=1000)
    tag, batches = 0, 0
    while True:
        for _ in range(20):
            s.admit(0, 1, client=2 + tag % 3, tag=tag)
            tag += 1
        batches += 1
        if 1000 in tags(run(s)):
            break
    assert batches <= 6


@pytest.mark.parametrize(("clients", "shares"), [(4, [32] * 4), (16, [8] * 16), (64, [4] * 32)])
def test_a_batch_is_shared_out_evenly_among_few_clients_and_among_thirty_two_of_many(make, clients, shares):
    s = make(max_batch_rows=128)
    for client in range(clients):
        for _ in range(40):
            s.admit(0, 1, client=client, tag=client)
    given = tags(run(s))
    assert sorted(given.count(client) for client in set(given)) == shares


def test_zero_row_calls_cannot_hold_a_turn_for_ever(make):
    s = make(max_batch_rows=4)
    for tag in range(50):
        s.admit(0, 0, client=1, tag=tag)
    for tag in range(50, 60):
        s.admit(0, 1, client=2, tag=tag)
    assert max(tags(run(s))) >= 50


def test_the_group_with_the_tightest_deadline_goes_first(make):
    s = make()
    admit(s, 1, group=1)
    admit(s, 1, group=2, deadline_ns=SECOND // 2)
    assert [run(s).group, run(s).group] == [2, 1]


def test_a_call_without_a_deadline_ranks_as_if_it_had_a_second(make):
    s = make()
    admit(s, 1, group=1)
    admit(s, 1, now_ns=10, group=2, deadline_ns=SECOND + 5)
    assert [run(s, 10).group, run(s, 10).group] == [1, 2]


# ---- admission, cancelling, deadlines ------------------------------------------------


def test_the_queue_is_bounded_in_rows_and_says_so_at_once(make):
    s = make(max_batch_rows=4, max_queue_rows=6)
    admit(s, 4, 2)
    assert s.admit(0, 1).verdict == "refused_queue"
    assert s.admit(0, 7).verdict == "refused_size"
    assert s.admit(0, 0).verdict == "refused_queue"
    run(s)
    assert s.admit(0, 4).verdict == "admitted"


def test_calls_of_no_rows_count_as_one_row_of_the_queue(make):
    s = make(max_batch_rows=2, max_queue_rows=3)
    admit(s, 0, 0, 0)
    assert s.admit(0, 0).verdict == "refused_queue"


def test_nothing_is_refused_for_being_late_before_costs_are_known(make):
    s = make(max_batch_rows=1)
    admit(s, *[1] * 100, deadline_ns=1)
    assert s.statistics()["refused"] == 0


def test_a_cancelled_call_frees_its_place_at_once(make):
    s = make(max_queue_rows=128)
    first, second = admit(s, 100, 28)
    assert s.cancel(first)
    assert not s.cancel(first)
    assert s.statistics()["queued_rows"] == 28
    assert tags(run(s)) == [1]
    assert s.cancel(second)


def test_a_call_cancelled_while_it_runs_settles_as_gone_and_its_mates_are_answered(make):
    s = make()
    first, _ = admit(s, 1, 1)
    batch = run(s)
    assert s.cancel(first)
    assert outcomes(s.finished(batch.batch, 1)) == {0: "gone", 1: "answered"}


def test_a_stale_id_names_nobody_else(make):
    s = make()
    (old,) = admit(s, 1)
    s.finished(run(s).batch, 0)
    admit(s, 1)
    assert not s.cancel(old)
    assert s.statistics()["queued_calls"] == 1


def test_a_deadline_expires_queued_and_running_calls_also_without_an_idle_slot(make):
    s = make(max_batch_rows=2)
    admit(s, 1, 1, 1, deadline_ns=100)
    batch = run(s)
    waiting = s.decide(99, idle_slots=0)
    assert (waiting.action, waiting.until_ns) == ("idle", 100)
    assert s.expired() == []
    s.decide(100, idle_slots=0)
    assert outcomes(s.expired()) == {0: "expired", 1: "expired", 2: "expired"}
    assert outcomes(s.finished(batch.batch, 101)) == {0: "gone", 1: "gone"}
    assert s.decide(101).action == "idle"


def test_a_request_that_expired_in_the_queue_does_not_disturb_the_others(make):
    s = make()
    admit(s, 1, 1)
    s.admit(0, 1, deadline_ns=5, tag=2)
    assert tags(run(s, 6)) == [0, 1]
    assert outcomes(s.expired()) == {2: "expired"}


def test_a_deadline_already_past_is_admitted_and_expires_at_the_next_decision(make):
    s = make()
    admit(s, 1, now_ns=10, deadline_ns=5)
    assert s.decide(10).action == "idle"
    assert outcomes(s.expired()) == {0: "expired"}


# ---- isolation ------------------------------------------------------------------------


def test_only_the_guilty_call_fails_and_it_is_found_by_halving(make):
    s = make()
    admit(s, *[1] * 8)
    batches, verdicts = run_all(s, lambda tags: "raised" if 5 in tags else "ok")
    assert batches == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
    assert verdicts == {tag: "failed" if tag == 5 else "answered" for tag in range(8)}


def test_halves_are_made_of_whole_calls(make):
    s = make()
    admit(s, 3, 50, 3)
    batches, verdicts = run_all(s, lambda tags: "raised" if 1 in tags else "ok")
    assert batches == [[0, 1, 2], [0], [1, 2], [1], [2]]
    assert verdicts == {0: "answered", 1: "failed", 2: "answered"}


def test_a_broken_model_is_searched_once_and_then_fails_whole_until_it_works(make):
    s = make()
    admit(s, *[1] * 4)
    batches, _ = run_all(s, lambda tags: "raised")
    assert len(batches) == 7
    admit(s, *[1] * 4)
    batches, verdicts = run_all(s, lambda tags: "raised")
    assert (len(batches), set(verdicts.values())) == (1, {"failed"})
    admit(s, 1)
    run_all(s, lambda tags: "ok")
    admit(s, *[1] * 4)
    batches, verdicts = run_all(s, lambda tags: "raised" if 0 in tags else "ok")
    assert verdicts == {0: "failed", 1: "answered", 2: "answered", 3: "answered"}


def test_a_lone_guilty_call_says_nothing_about_the_model(make):
    s = make()
    admit(s, 1)
    run_all(s, lambda tags: "raised")
    admit(s, 1, 1)
    _, verdicts = run_all(s, lambda tags: "raised" if 0 in tags else "ok")
    assert verdicts == {0: "failed", 1: "answered"}


def test_a_poison_call_costs_three_workers_and_is_lost_alone(make):
    s = make()
    admit(s, *[1] * 4)
    deaths = []

    def model(tags):
        if 2 not in tags:
            return "ok"
        deaths.append(tags)
        return "died"

    batches, verdicts = run_all(s, model)
    assert deaths == [[0, 1, 2, 3], [0, 1, 2, 3], [2]]
    assert verdicts == {0: "answered", 1: "answered", 2: "lost", 3: "answered"}
    assert batches == [[0, 1, 2, 3], [0, 1, 2, 3], [0], [1], [2], [3]]


def test_a_batch_whose_worker_died_once_runs_again_before_the_queue(make):
    s = make(max_batch_rows=2)
    admit(s, 1, 1)
    batch = run(s)
    admit(s, 2)
    assert outcomes(s.finished(batch.batch, 1, "died")) == {0: "rerun", 1: "rerun"}
    again = run(s, 1)
    assert (tags(again), again.reason) == ([0, 1], "rerun")
    assert outcomes(s.finished(again.batch, 2)) == {0: "answered", 1: "answered"}


@pytest.mark.parametrize(("how", "outcome"), [("raised", "failed"), ("died", "lost")])
def test_without_isolation_every_row_runs_at_most_once(make, how, outcome):
    s = make(isolate_errors=False)
    admit(s, 1, 1)
    batches, verdicts = run_all(s, lambda tags: how)
    assert (batches, verdicts) == ([[0, 1]], {0: outcome, 1: outcome})


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_that_was_handed_back_runs_next_as_if_it_had_not_been_out(make, isolate):
    s = make(isolate_errors=isolate, max_batch_rows=2)
    admit(s, 1, 1, 1)
    for _ in range(5):
        batch = run(s)
        assert tags(batch) == [0, 1]
        assert outcomes(s.finished(batch.batch, 1, "unrun")) == {0: "rerun", 1: "rerun"}
    assert run_all(s, lambda tags: "ok") == (
        [[0, 1], [2]],
        {0: "answered", 1: "answered", 2: "answered"},
    )


def test_a_batch_that_is_handed_back_again_and_again_costs_its_calls_a_death_now_and_then(make):
    s = make()
    admit(s, 1, 1)
    handed_out, verdicts = 0, {}
    while len(verdicts) < 2:
        batch = run(s)
        handed_out += 1
        verdicts |= {
            tag: what
            for tag, what in outcomes(s.finished(batch.batch, 1, "unrun")).items()
            if what != "rerun"
        }
    # Twice together, then each call alone.
    assert (handed_out, verdicts) == (4 * 16, {0: "lost", 1: "lost"})


def test_rows_that_run_at_most_once_are_lost_when_they_were_handed_back_too_often(make):
    s = make(isolate_errors=False)
    admit(s, 1)
    for _ in range(15):
        assert outcomes(s.finished(run(s).batch, 1, "unrun")) == {0: "rerun"}
    assert outcomes(s.finished(run(s).batch, 1, "unrun")) == {0: "lost"}


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_that_cannot_be_sent_is_halved_and_says_nothing_of_the_model(make, isolate):
    s = make(isolate_errors=isolate, max_batch_rows=4)
    admit(s, 1, 1, 1, 1)
    batches, verdicts = run_all(s, lambda tags: "unsent")
    assert batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3]]
    assert set(verdicts.values()) == {"failed"}
    # A model that raises now is not taken to be broken.
    admit(s, 1, 1)
    batch = run(s)
    expected = "rerun" if isolate else "failed"
    assert set(outcomes(s.finished(batch.batch, 1, "raised")).values()) == {expected}


def test_nothing_is_left_of_a_batch_that_was_handed_back_without_a_call(make):
    s = make()
    (only,) = admit(s, 1)
    batch = run(s)
    assert s.cancel(only)
    assert outcomes(s.finished(batch.batch, 1, "unrun")) == {0: "gone"}
    assert s.decide(1).action == "idle"


def test_an_unusable_result_fails_every_call_and_is_never_run_again(make):
    s = make()
    admit(s, 1, 1)
    assert run_all(s, lambda tags: "invalid") == ([[0, 1]], {0: "broken", 1: "broken"})


def test_cancelled_and_expired_calls_leave_the_batches_that_are_to_run_again(make):
    s = make()
    first, _, _ = (s.admit(0, 1, tag=tag, deadline_ns=[None, 50, None][tag]).id for tag in range(3))
    s.finished(run(s).batch, 1, "died")
    assert s.cancel(first)
    assert tags(run(s, 60)) == [2]
    assert outcomes(s.expired()) == {1: "expired"}


def test_a_batch_to_run_again_vanishes_with_its_last_call(make):
    s = make()
    (only,) = admit(s, 1)
    s.finished(run(s).batch, 1, "died")
    assert s.statistics()["queued_calls"] == 1
    assert s.cancel(only)
    assert s.decide(1).action == "idle"
    assert s.statistics()["groups"] == 0


def test_a_call_whose_neighbour_left_while_the_batch_raised_is_tried_alone(make):
    s = make()
    first, _ = admit(s, 1, 1)
    batch = run(s)
    s.cancel(first)
    assert outcomes(s.finished(batch.batch, 1, "raised")) == {0: "gone", 1: "rerun"}
    assert outcomes(s.finished(run(s, 1).batch, 2)) == {1: "answered"}


# ---- statistics ----------------------------------------------------------------------


def test_statistics_are_exact_after_each_step(make):
    s = make(max_batch_rows=4)
    admit(s, 3, 2)
    n = s.statistics()
    assert (n["calls"], n["queued_calls"], n["queued_rows"], n["groups"]) == (2, 2, 5, 1)
    batch = run(s)
    n = s.statistics()
    assert (n["queued_rows"], n["in_flight_batches"], n["batches"]) == (2, 1, 1)
    assert (n["batch_rows"][:4], n["released"]["full"]) == ([0, 0, 1, 0], 1)
    s.finished(batch.batch, 1)
    n = s.statistics()
    assert (n["answered"], n["in_flight_batches"], n["groups"]) == (1, 0, 1)


# ---- the native object -----------------------------------------------------------------


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="max_batch_size"):
        native.Scheduler(max_batch_size=3)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_rows": 0},
        {"max_queue_rows": 0},
        {"max_wait_ns": -1},
        {"fixed_rows": 0},
        {"rule": "best"},
        {"objective": "fun"},
        {"max_batch_rows": 4, "allowed_rows": (4, 2)},
        {"max_batch_rows": 4, "allowed_rows": (1, 2)},
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=r"must"):
        native.Scheduler(**options)


# ---- the last releases -----------------------------------------------------------------------------


def last_release(scheduler):
    return scheduler.recent_releases()[-1]


def test_a_release_says_why_it_was_held_how_long_and_what_became_of_it(make):
    s = make(rule="fixed", fixed_rows=8, fixed_wait_ns=50, max_batch_rows=8)
    admit(s, 1, 2, now_ns=100)
    assert s.decide(110, 2, 3).action == "wait"
    admit(s, 0, now_ns=130)
    decision = s.decide(150, 2, 3)
    released = last_release(s)
    assert (released.number, released.released_ns, released.reason) == (1, 150, "cap")
    assert (released.calls, released.rows, released.padded_rows) == (3, 3, 3)
    assert (released.idle_slots, released.held_ns) == (2, 40)
    assert (released.how, released.took_ns) == ("running", None)
    s.finished(decision.batch, 175)
    assert (last_release(s).how, last_release(s).took_ns) == ("ok", 25)


def test_a_hold_ends_with_the_calls_that_were_held(make):
    s = make(rule="fixed", fixed_rows=8, fixed_wait_ns=50)
    (held,) = admit(s, 1)
    s.decide(0, 1, 1)
    s.cancel(held)
    admit(s, 8, now_ns=30)
    run(s, 30)
    assert (last_release(s).reason, last_release(s).held_ns) == ("full", 0)


@pytest.mark.parametrize("how", ["raised", "died", "invalid", "unrun"])
def test_a_release_that_ended_badly_says_how(make, how):
    s = make(isolate_errors=False)
    admit(s, 1)
    s.finished(run(s).batch, 7, how)
    assert (last_release(s).how, last_release(s).took_ns) == (how, 7)


def test_only_the_last_releases_are_remembered(make):
    s = make()
    for _ in range(300):
        admit(s, 1)
        s.finished(run(s).batch, 0)
    admit(s, 1)
    first = run(s)
    for _ in range(299):
        admit(s, 1)
        run(s)
    s.finished(first.batch, 5)  # its entry is another batch's by now
    assert [release.number for release in s.recent_releases()] == list(range(345, 601))
    assert {release.how for release in s.recent_releases()} == {"running"}


def test_predicted_and_actual_costs_are_summed_up_by_reason():
    s = native.Scheduler(max_batch_rows=2, rule="greedy")
    now_ns = 0
    for rows, took_ns in ((1, 100), (1, 120), (2, 150), (2, 150)):
        admit(s, rows, now_ns=now_ns)
        s.finished(run(s, now_ns).batch, now_ns + took_ns)
        now_ns += 1000
    first, second, third, fourth = s.recent_releases()
    assert first.predicted_ns is None  # nothing was known, so that it is in neither sum
    assert second.predicted_ns == 100
    numbers = s.statistics()
    assert numbers["actual_ns"]["worker_free"] == 120
    assert numbers["predicted_ns"]["worker_free"] == 100
    assert numbers["actual_ns"]["full"] == 300
    assert numbers["predicted_ns"]["full"] == third.predicted_ns + fourth.predicted_ns


def test_a_batch_that_failed_is_in_no_sum_of_costs():
    s = native.Scheduler(rule="greedy", isolate_errors=False)
    admit(s, 1)
    s.finished(run(s).batch, 100)
    admit(s, 1)
    s.finished(run(s, 100).batch, 900, "raised")
    assert sum(s.statistics()["actual_ns"].values()) == 0


def test_a_refused_option_changes_nothing():
    s = native.Scheduler(max_batch_rows=2, rule="greedy")
    with pytest.raises(ValueError, match="must"):
        s.set_options(max_batch_rows=0)
    admit(s, 1, 1, 1)
    assert run(s).rows == 2


def test_a_batch_ends_once():
    s = native.Scheduler(rule="greedy")
    admit(s, 1)
    batch = run(s).batch
    s.finished(batch, 1)
    for stale in (batch, 0, 2**64 - 1):
        with pytest.raises(KeyError):
            s.finished(stale, 1)


def test_a_closed_scheduler_says_so_and_closes_twice():
    s = native.Scheduler()
    admit(s, 1)
    s.close()
    s.close()
    with pytest.raises(ValueError, match="closed"):
        s.decide(0)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_scheduler_cannot_be_duplicated(duplicate):
    with pytest.raises(TypeError, match="Scheduler"):
        duplicate(native.Scheduler())


def test_live_objects_return_to_what_they_were():
    before = _native.live_objects()
    s = native.Scheduler(rule="greedy")
    admit(s, 1, 1)
    run(s)
    admit(s, 1)
    if native.live_objects():  # counted in builds with debug_counters only
        assert _native.live_objects() == before + 1 + 3 + 1
    s.close()
    assert _native.live_objects() == before
