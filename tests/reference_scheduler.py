"""The scheduler once more, in plain Python: the oracle of the native one.

What it is      the same calls and the same answers as `batching._native.scheduler`,
                for the rules "greedy" and "fixed", with lists that are searched from
                the front instead of heaps, free lists and counters.
Not promised    speed, and the same ids: compare by `tag`.
Why this shape  written from scheduler.h, to be read beside it. Where the two differ,
                one of them misreads the contract.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

AGEING_NS = 1_000_000_000
MOST_GROUPS_HELD = 64
MOST_PASSED_OVER = 64
# Clients that a batch is shared out among, at most.
MOST_SHARERS = 32
DEATHS_AT_MOST = 3
RETURNS_AT_MOST = 16
NEVER = 2**63 - 1


class Admission(NamedTuple):
    verdict: str
    id: int
    predicted_ns: int | None


class Decision(NamedTuple):
    action: str
    until_ns: int | None
    batch: int
    group: int
    rows: int
    padded_rows: int
    reason: str | None
    parts: list[tuple[int, int, int, int]]


class Release(NamedTuple):
    number: int
    released_ns: int
    reason: str
    calls: int
    rows: int
    padded_rows: int
    idle_slots: int
    held_ns: int
    predicted_ns: int | None  # not of interest: the twin learns no costs
    took_ns: int | None
    how: str


class Settled(NamedTuple):
    id: int
    tag: int
    first_row: int
    rows: int
    batch_offset: int
    outcome: str


@dataclass(eq=False)
class Call:
    id: int
    tag: int
    rows: int
    group: int
    client: int
    arrival_ns: int
    deadline_ns: int
    next_row: int = 0
    done_rows: int = 0
    deaths: int = 0

    @property
    def queued_rows(self) -> int:
        return self.rows - self.next_row


@dataclass(eq=False)
class Part:
    call: Call
    first_row: int
    rows: int


@dataclass(eq=False)
class Trial:
    """A batch of the queue and all its re-runs."""

    open: int = 1
    failed: int = 0
    succeeded: bool = False


@dataclass(eq=False)
class Batch:
    group: int
    trial: Trial | None
    parts: list[Part] = field(default_factory=list)
    id: int = 0
    release: Release | None = None
    returns: int = 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclass(eq=False)
class Turn:
    """A client's place among those of its group, while it has a call in the queue."""

    client: int
    deficit: int = 0
    credited: bool = False


class Scheduler:
    def __init__(self, **options):
        self.options = {
            "max_batch_rows": 128,
            "max_queue_rows": 65_536,
            "isolate_errors": True,
            "one_call_a_batch": False,
            "rule": "greedy",
            "objective": "latency",
            "max_wait_ns": None,
            "fixed_wait_ns": 0,
            "fixed_rows": None,
            "allowed_rows": (),
        } | options
        self.now_ns = 0
        self.ids = itertools.count(1)
        self.live: dict[int, Call] = {}
        self.queue: list[Call] = []  # in the order of admission
        self.turns: dict[int, list[Turn]] = {}
        self.sealed: list[Batch] = []  # a stack, the next one last
        self.running: dict[int, Batch] = {}
        self.failed_whole = False
        self.releases: list[Release] = []
        self.held_since: dict[int, int] = {}  # group -> when it was first held
        self.idle_slots = 0
        self.gone: list[Settled] = []
        self.counted = dict.fromkeys(("calls", "answered", "failed", "refused", "expired", "cancelled"), 0)
        self.batch_rows = [0] * 40
        self.released = dict.fromkeys(
            ("full", "worker_free", "everyone_here", "hold_expired", "budget", "cap", "rerun"), 0
        )

    @property
    def most(self) -> int:
        return self.options["max_batch_rows"]

    # ---- calls ------------------------------------------------------------

    def set_options(self, **changes):
        self.options |= changes

    def admit(self, now_ns, rows, group=0, deadline_ns=None, client=0, tag=0):
        self.now_ns = now_ns
        self.counted["calls"] += 1
        waiting = self._queued_rows() + sum(call.rows == 0 for call in self.queue)
        if rows > self.options["max_queue_rows"]:
            return self._refuse("refused_size")
        if waiting + max(rows, 1) > self.options["max_queue_rows"]:
            return self._refuse("refused_queue")
        deadline = NEVER if deadline_ns is None else deadline_ns
        call = Call(next(self.ids), tag, rows, group, client, now_ns, deadline)
        self.live[call.id] = call
        self.queue.append(call)
        turns = self.turns.setdefault(group, [])
        if all(turn.client != client for turn in turns):
            turns.append(Turn(client))
        return Admission("admitted", call.id, None)

    def _refuse(self, verdict):
        self.counted["refused"] += 1
        return Admission(verdict, 0, None)

    def cancel(self, id):
        call = self.live.get(id)
        if call is None:
            return False
        self.counted["cancelled"] += 1
        self._end(call)
        return True

    def _end(self, call):
        del self.live[call.id]
        if call in self.queue:
            self._leave_queue(call)
        for batch in list(self.sealed):
            batch.parts = [part for part in batch.parts if part.call is not call]
            if not batch.parts:
                self.sealed.remove(batch)
                self._close(batch)

    def _leave_queue(self, call):
        self.queue.remove(call)
        if all(other.client != call.client for other in self._of_group(call.group)):
            turns = self.turns[call.group]
            self.turns[call.group] = [turn for turn in turns if turn.client != call.client]
        if not self._of_group(call.group):
            self.held_since.pop(call.group, None)

    def _of_group(self, group):
        return [call for call in self.queue if call.group == group]

    def _queued_rows(self):
        return sum(call.queued_rows for call in self.queue) + sum(batch.rows for batch in self.sealed)

    # ---- expiry -----------------------------------------------------------

    def _expire_due(self):
        # Sorting is stable: equal deadlines expire in the order of admission.
        for call in sorted(self.live.values(), key=lambda call: call.deadline_ns):
            if call.deadline_ns > self.now_ns:
                return
            self.gone.append(Settled(call.id, call.tag, 0, call.rows, 0, "expired"))
            self.counted["expired"] += 1
            self._end(call)

    def expired(self):
        gone, self.gone = self.gone, []
        return gone

    # ---- the decision -----------------------------------------------------

    def decide(self, now_ns, idle_slots=1, total_slots=1):
        self.now_ns = now_ns
        self.idle_slots = idle_slots
        self._expire_due()
        untils = [call.deadline_ns for call in self.live.values()]
        if idle_slots > 0 and self.sealed:
            return self._run(self._unstack(), "rerun", 0)
        groups = self._groups_by_rank() if idle_slots > 0 else []
        for group in groups:
            until_ns, reason = self._hold(group)
            if until_ns > now_ns:
                self.held_since.setdefault(group, now_ns)
                if len(groups) <= MOST_GROUPS_HELD:
                    untils.append(until_ns)
                    continue
                reason = "worker_free"
            held_ns = now_ns - self.held_since.pop(group, now_ns)
            return self._run(self._form(group), reason, held_ns)
        until_ns = min(untils, default=NEVER)
        action = "wait" if groups else "idle"
        return Decision(action, None if until_ns == NEVER else until_ns, 0, 0, 0, 0, None, [])

    def _groups_by_rank(self):
        first: dict[int, Call] = {}
        rank: dict[int, int] = {}
        for call in self.queue:
            first.setdefault(call.group, call)
            own = min(call.deadline_ns, call.arrival_ns + AGEING_NS)
            rank[call.group] = min(own, rank.get(call.group, NEVER))
        return sorted(first, key=lambda group: (rank[group], first[group].id))

    def _hold(self, group):
        """When the group is to be released, and why then."""
        options, calls = self.options, self._of_group(group)
        if options["one_call_a_batch"]:
            return self.now_ns, "worker_free"
        fixed = options["rule"] == "fixed"
        full = min(options["fixed_rows"] or self.most, self.most) if fixed else self.most
        if sum(call.queued_rows for call in calls) >= full:
            return self.now_ns, "full"
        if not fixed:
            return self.now_ns, "worker_free"
        waits = [options["fixed_wait_ns"]]
        if options["max_wait_ns"] is not None:
            waits.append(options["max_wait_ns"])
        return calls[0].arrival_ns + min(waits), "cap"

    def _run(self, batch, reason, held_ns):
        batch.id = next(self.ids)
        self.running[batch.id] = batch
        rows = batch.rows
        self.batch_rows[max(0, rows - 1).bit_length()] += 1
        self.released[reason] += 1
        padded = next((size for size in self.options["allowed_rows"] if size >= rows), rows)
        parts = [(part.call.id, part.call.tag, part.first_row, part.rows) for part in batch.parts]
        number = sum(self.released.values())
        batch.release = Release(
            number,
            self.now_ns,
            reason,
            len(parts),
            rows,
            padded,
            self.idle_slots,
            held_ns,
            None,
            None,
            "running",
        )
        self.releases.append(batch.release)
        return Decision("run", None, batch.id, batch.group, rows, padded, reason, parts)

    # ---- forming a batch --------------------------------------------------

    def _form(self, group):
        batch = Batch(group, None)
        calls = self._of_group(group)
        if self.options["one_call_a_batch"]:
            crowded = len(calls) > 1
        else:
            crowded = sum(call.queued_rows for call in calls) > self.most
        if crowded and len(self.turns[group]) > 1:
            self._fill_by_turns(batch)
        else:
            for call in calls:
                if not self._fits(batch, call) or self._take(batch, call):
                    break
        return batch

    def _part_rows(self, call):
        return call.queued_rows if self.options["one_call_a_batch"] else min(call.queued_rows, self.most)

    def _fits(self, batch, call):
        if not batch.parts:
            return True
        return not self.options["one_call_a_batch"] and call.queued_rows <= self.most - batch.rows

    def _take(self, batch, call):
        """Moves the call's next part into the batch; True if nothing may join it."""
        rows = self._part_rows(call)
        batch.parts.append(Part(call, call.next_row, rows))
        call.next_row += rows
        if call.queued_rows:
            return True
        self._leave_queue(call)
        return self.options["one_call_a_batch"]

    def _fill_by_turns(self, batch):
        quantum = max(1, self.most // min(len(self.turns[batch.group]), MOST_SHARERS))
        passed_over: list[Turn] = []
        complete = False
        while not complete and (not batch.parts or batch.rows < self.most):
            waiting = [turn for turn in self.turns[batch.group] if turn not in passed_over]
            if not waiting or len(passed_over) == MOST_PASSED_OVER:
                break
            turn = waiting[0]
            if not turn.credited:
                turn.deficit += quantum
                turn.credited = True
            complete = self._take_turn(batch, turn)
            turns = self.turns[batch.group]
            if complete or turn not in turns:
                continue
            if self._price(batch, turn) <= turn.deficit:
                passed_over.append(turn)
            else:
                turn.credited = False
                turns.remove(turn)
                turns.append(turn)
        rest = [turn for turn in self.turns[batch.group] if turn not in passed_over]
        self.turns[batch.group] = passed_over + rest

    def _next_of(self, batch, turn):
        return next((call for call in self._of_group(batch.group) if call.client == turn.client), None)

    def _price(self, batch, turn):
        return max(1, self._part_rows(self._next_of(batch, turn)))

    def _take_turn(self, batch, turn):
        """Takes what the client may take now; True if the batch is complete."""
        while (call := self._next_of(batch, turn)) is not None:
            price = self._price(batch, turn)
            if price > turn.deficit or not self._fits(batch, call):
                return False
            turn.deficit -= price
            if self._take(batch, call):
                return True
        return False

    # ---- sealed batches ---------------------------------------------------

    def _unstack(self):
        """The next sealed batch, cut to what a batch may hold now."""
        batch = self.sealed.pop()
        first, *others = batch.parts
        together, rest = [first], []
        alone = self.options["one_call_a_batch"]
        if first.rows > self.most and not alone:
            rest.append(Part(first.call, first.first_row + self.most, first.rows - self.most))
            first.rows = self.most
        while others and not alone and sum(p.rows for p in together) + others[0].rows <= self.most:
            together.append(others.pop(0))
        rest += others
        batch.parts = together
        if rest:
            self._seal(batch, rest)
        return batch

    def _seal(self, parent, parts):
        parent.trial.open += 1
        self.sealed.append(Batch(parent.group, parent.trial, list(parts)))

    def _close(self, batch):
        trial = batch.trial
        if trial is None:
            return
        trial.open -= 1
        if trial.open == 0 and trial.failed > 1 and not trial.succeeded:
            self.failed_whole = True

    # ---- outcomes ---------------------------------------------------------

    def finished(self, batch, now_ns, how="ok"):
        self.now_ns = now_ns
        done = self.running.pop(batch)
        ended = done.release._replace(took_ns=now_ns - done.release.released_ns, how=how)
        self.releases[done.release.number - 1] = ended
        parts = [part for part in done.parts if part.call.id in self.live]
        settle = {
            "ok": self._answer,
            "raised": self._raised,
            "died": self._died,
            "invalid": self._invalid,
            "unrun": self._unrun,
            "unsent": self._unsent,
        }
        outcomes = settle[how](done, parts)
        self._close(done)
        entries, offset = [], 0
        for part in done.parts:
            outcome = outcomes.get(part.call.id, "gone")
            entries.append(Settled(part.call.id, part.call.tag, part.first_row, part.rows, offset, outcome))
            offset += part.rows
        return entries

    def _answer(self, batch, parts):
        self.failed_whole = False
        if batch.trial is not None:
            batch.trial.succeeded = True
        outcomes = {}
        for part in parts:
            part.call.done_rows += part.rows
            complete = part.call.done_rows == part.call.rows
            outcomes[part.call.id] = "answered" if complete else "part"
            if complete:
                self.counted["answered"] += 1
                self._end(part.call)
        return outcomes

    def _fail(self, batch, parts, outcome):
        for part in parts:
            self.counted["failed"] += 1
            if batch.trial is not None:
                batch.trial.failed += 1
            self._end(part.call)
        return {part.call.id: outcome for part in parts}

    def _invalid(self, batch, parts):
        return self._fail(batch, parts, "broken")

    def _raised(self, batch, parts):
        broken_model = self.failed_whole and batch.trial is None
        if not self.options["isolate_errors"] or broken_model or len(batch.parts) == 1:
            return self._fail(batch, parts, "failed")
        return self._halve(batch, parts)

    def _halve(self, batch, parts):
        batch.trial = batch.trial or Trial()
        half = len(parts) // 2
        for some in (parts[half:], parts[:half]):
            if some:
                self._seal(batch, some)
        return {part.call.id: "rerun" for part in parts}

    def _unsent(self, batch, parts):
        if len(parts) > 1:
            return self._halve(batch, parts)
        outcomes = self._fail(batch, parts, "failed")
        if batch.trial is not None:
            batch.trial.failed -= len(parts)
        return outcomes

    def _died(self, batch, parts):
        if not self.options["isolate_errors"]:
            return self._fail(batch, parts, "lost")
        batch.trial = batch.trial or Trial()
        for part in parts:
            part.call.deaths += 1
        outcomes = {part.call.id: "rerun" for part in parts}
        outcomes |= self._fail(batch, [p for p in parts if p.call.deaths >= DEATHS_AT_MOST], "lost")
        for part in reversed(parts):
            if part.call.deaths == DEATHS_AT_MOST - 1:
                self._seal(batch, [part])
        together = [part for part in parts if part.call.deaths == 1]
        if together:
            self._seal(batch, together)
        return outcomes

    def _unrun(self, batch, parts):
        if parts and batch.returns + 1 == RETURNS_AT_MOST:
            return self._died(batch, parts)
        if parts:
            batch.trial = batch.trial or Trial()
            self._seal(batch, parts)
            self.sealed[-1].returns = batch.returns + 1
        return {part.call.id: "rerun" for part in parts}

    def recent_releases(self):
        return self.releases[-256:]

    # ---- what there is ----------------------------------------------------

    def statistics(self):
        waiting = {call.id for call in self.queue}
        waiting |= {part.call.id for batch in self.sealed for part in batch.parts}
        groups = {call.group for call in self.live.values()}
        groups |= {batch.group for batch in (*self.sealed, *self.running.values())}
        return self.counted | {
            "queued_calls": len(waiting),
            "queued_rows": self._queued_rows(),
            "in_flight_batches": len(self.running),
            "batches": sum(self.released.values()),
            "batch_rows": list(self.batch_rows),
            "released": dict(self.released),
            "groups": len(groups),
        }

    def check(self):
        verdicts = sum(
            self.counted[name] for name in ("answered", "failed", "refused", "expired", "cancelled")
        )
        assert self.counted["calls"] == verdicts + len(self.live), "every call is live or has had one verdict"
        assert all(call.id in self.live for call in self.queue), "only live calls wait"
        assert all(batch.parts for batch in self.sealed), "an emptied batch vanishes"

    def close(self):
        self.live.clear()
