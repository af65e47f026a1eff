"""The native scheduler against its twin, step by step, over random histories."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import reference_scheduler as reference
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from batching._native.scheduler import Scheduler

pytestmark = pytest.mark.slow

FINAL = {"answered", "failed", "lost", "broken", "expired"}

OPTIONS = st.fixed_dictionaries(
    {
        "max_batch_rows": st.integers(1, 10),
        "max_queue_rows": st.integers(10, 50),
        "isolate_errors": st.sampled_from([True, True, True, False]),
        "one_call_a_batch": st.sampled_from([False, False, False, True]),
        "rule": st.sampled_from(["greedy", "fixed"]),
        "max_wait_ns": st.none() | st.integers(0, 60),
        "fixed_wait_ns": st.integers(0, 60),
        "fixed_rows": st.none() | st.integers(1, 10),
    }
)


CALLS = st.tuples(
    st.integers(0, 3) | st.integers(0, 25),  # rows
    st.sampled_from([0, 0, 0, 1]),  # group
    st.sampled_from([0, 0, 1, 2]),  # client
    st.sampled_from([None, None, None, -5, 40, 120, 200]),  # budget in ns
)


class SchedulerMachine(RuleBasedStateMachine):
    """A driver that keeps its duties, with two schedulers behind it.

    A call is known by its tag: the ids of the two differ.
    """

    calls = Bundle("calls")
    batches = Bundle("batches")

    @initialize(options=OPTIONS)
    def start(self, options):
        self.native = Scheduler(**options)
        self.twin = reference.Scheduler(**options)
        self.options = options
        self.now_ns = 0
        self.ids = {}  # tag -> (native, twin)
        self.rows = {}  # tag -> rows that have no result yet
        self.live = set()
        self.clients = {}  # tag -> (group, client)
        self.started = {}  # (group, client) -> the newest tag that was started

    def teardown(self):
        if hasattr(self, "native"):
            self.native.close()

    @rule(target=calls, burst=st.lists(CALLS, min_size=1, max_size=12))
    def admit(self, burst):
        return multiple(*filter(None, (self.admit_one(*call) for call in burst)))

    def admit_one(self, rows, group, client, budget_ns):
        tag = len(self.ids) + 1
        deadline_ns = None if budget_ns is None else self.now_ns + budget_ns
        ours, theirs = (
            scheduler.admit(self.now_ns, rows, group, deadline_ns, client, tag)
            for scheduler in (self.native, self.twin)
        )
        assert ours.verdict == theirs.verdict
        assert ours.predicted_ns is None
        assert (ours.verdict == "admitted") == (ours.id != 0)
        if ours.verdict != "admitted":
            return None
        self.ids[tag] = ours.id, theirs.id
        self.rows[tag] = rows
        self.clients[tag] = group, client
        self.live.add(tag)
        return tag

    @rule(tag=calls)
    def cancel(self, tag):
        ours, theirs = (s.cancel(id) for s, id in zip((self.native, self.twin), self.ids[tag], strict=True))
        assert ours == theirs == (tag in self.live)
        self.live.discard(tag)

    @rule(target=batches, idle=st.integers(0, 2))
    def decide(self, idle):
        batch = self.decide_once(idle)
        return multiple() if batch is None else batch[:2]

    def decide_once(self, idle):
        """The ids of the batch and the tags in it, or None."""
        ours, theirs = (s.decide(self.now_ns, idle, 2) for s in (self.native, self.twin))
        self.drain_expired()
        assert self.without_ids(ours) == self.without_ids(theirs)
        if ours.action != "run":
            queued = self.native.statistics()["queued_calls"]
            assert ours.action == ("wait" if idle and queued else "idle")
            assert ours.until_ns is None or ours.until_ns > self.now_ns
            assert ours.until_ns == theirs.until_ns
            return None
        self.check_batch(ours)
        return ours.batch, theirs.batch, {part[1] for part in ours.parts}

    @staticmethod
    def without_ids(decision):
        return decision._replace(batch=0, until_ns=None, parts=[part[1:] for part in decision.parts])

    def check_batch(self, decision):
        assert decision.rows == sum(part[3] for part in decision.parts)
        if self.options["one_call_a_batch"]:
            assert len(decision.parts) == 1
        else:
            assert decision.rows <= self.options["max_batch_rows"]
        for _, tag, _, _ in decision.parts:
            assert tag in self.live
            assert self.clients[tag][0] == decision.group
            if decision.reason != "rerun":
                assert self.started.get(self.clients[tag], -1) <= tag
                self.started[self.clients[tag]] = tag

    @rule(
        raising=st.sets(st.integers(0, 6), max_size=3) | st.just(set(range(7))),
        deadly=st.sets(st.integers(0, 10), max_size=2),
    )
    def run_until_idle(self, raising, deadly):
        """One worker and a model that some calls make raise, and some kill."""
        while batch := self.decide_once(1):
            *ids, tags = batch
            kills = any(tag % 11 in deadly for tag in tags)
            raises = any(tag % 7 in raising for tag in tags)
            self.finish_one(ids, "died" if kills else "raised" if raises else "ok")

    @rule(
        batch=consumes(batches),
        how=st.sampled_from(["ok", "ok", "raised", "died", "invalid", "unrun", "unsent"]),
    )
    def finish(self, batch, how):
        self.finish_one(batch, how)

    def finish_one(self, batch, how):
        ours, theirs = (
            s.finished(id, self.now_ns, how) for s, id in zip((self.native, self.twin), batch, strict=True)
        )
        assert [entry[1:] for entry in ours] == [entry[1:] for entry in theirs]
        for entry in ours:
            assert (entry.outcome == "gone") == (entry.tag not in self.live)
            if entry.outcome in ("part", "answered"):
                self.rows[entry.tag] -= entry.rows
                assert (self.rows[entry.tag] == 0) == (entry.outcome == "answered")
            if entry.outcome in FINAL:
                self.live.remove(entry.tag)

    @rule(step_ns=st.integers(1, 80))
    def advance_time(self, step_ns):
        self.now_ns += step_ns

    @rule(changes=OPTIONS)
    def set_options(self, changes):
        self.native.set_options(**changes)
        self.twin.set_options(**changes)
        self.options = changes

    def drain_expired(self):
        ours, theirs = self.native.expired(), self.twin.expired()
        assert [entry[1:] for entry in ours] == [entry[1:] for entry in theirs]
        for entry in ours:
            self.live.remove(entry.tag)

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "native"):
            return
        self.native.check()
        self.twin.check()
        ours = self.native.statistics()
        for learned in ("policy", "predicted_ns", "actual_ns"):
            ours.pop(learned)
        assert ours == self.twin.statistics()
        releases = [release._replace(predicted_ns=None) for release in self.native.recent_releases()]
        assert releases == self.twin.recent_releases()


SchedulerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSchedulerAgreesWithItsTwin = SchedulerMachine.TestCase
