"""The embedded engine: how calls become batches, and what becomes of each call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import models
import numpy as np
import pytest
import uvloop
from fakes import PATIENCE_S, Caller, FakeClock, ScriptedModel, wait_until

from batching import (
    BatchOptions,
    DeadlineExceeded,
    InvalidPayload,
    Overloaded,
    Runner,
    RunnerClosed,
    RunnerError,
    SimpleRunner,
)


@pytest.fixture
def model() -> Iterator[Callable[..., ScriptedModel]]:
    """Makes scripted models; at the end of the test each is closed, its batches echoed."""
    made: list[ScriptedModel] = []

    def make(*, real_time: bool = False, **options: Any) -> ScriptedModel:
        clock = {"clock": None} if real_time else {}
        made.append(ScriptedModel(options=BatchOptions(**options), **clock))
        return made[-1]

    yield make
    for scripted in made:
        closer = Caller(scripted.close)
        while closer._thread.is_alive():
            try:
                scripted.batches.get(timeout=0.01).echo()
            except Exception:
                continue
        closer.result()


def queued(runner: Runner, calls: int) -> None:
    wait_until(lambda: runner.statistics().queued_calls == calls, f"{calls} queued calls")


def busy(model: ScriptedModel) -> tuple[Caller, Any]:
    """Gives the model a first batch, so that what comes next has to queue."""
    first = Caller(model.run, "first")
    return first, model.expect_batch()


def call_in_order(model: Runner, *calls: list[Any]) -> list[Caller]:
    """Queues calls of several rows, one after the other."""
    callers = []
    for rows in calls:
        before = model.statistics().queued_calls
        callers.append(Caller(model.run_batch, rows))
        queued(model, before + 1)
    return callers


# ---- batches -----------------------------------------------------------------------------


def test_a_batch_size_of_one_answers_at_once_whatever_the_wait(model):
    runner = model(max_batch_size=1, max_wait_ms=1_000_000)
    caller = Caller(runner.run, "a")
    runner.expect_batch().echo()
    assert caller.result() == "a"
    failing = Caller(runner.run, "b")
    runner.expect_batch().fail(ValueError("b is bad"))
    with pytest.raises(RunnerError, match="b is bad"):
        failing.result()


def test_the_first_call_runs_alone_and_those_that_come_meanwhile_run_together(model):
    runner = model(max_wait_ms=0)
    first, batch = busy(runner)
    others = call_in_order(runner, ["a"], ["b"], ["c"])
    assert batch.rows == ["first"]
    batch.echo()
    together = runner.expect_batch()
    assert together.rows == ["a", "b", "c"]
    together.echo()
    assert [first.result()] + [other.result() for other in others] == ["first", ["a"], ["b"], ["c"]]


def test_a_batch_is_not_formed_before_a_slot_is_free(model):
    runner = model()
    _, batch = busy(runner)
    (late,) = call_in_order(runner, ["late"])
    runner.expect_idle()
    (later,) = call_in_order(runner, ["later"])
    batch.echo()
    joined = runner.expect_batch()
    assert joined.rows == ["late", "later"]
    joined.echo()
    assert (late.result(), later.result()) == (["late"], ["later"])


def test_ten_calls_in_batches_of_two_all_finish(model):
    runner = model(max_batch_size=2, max_wait_ms=10_000_000)
    first, batch = busy(runner)
    others = call_in_order(runner, *[[i] for i in range(9)])
    batch.echo()
    for _ in range(4):
        runner.expect_batch().echo()
    last = runner.batches.get(timeout=PATIENCE_S)
    assert last.rows == [8]
    last.echo()
    assert [first.result(), *[other.result() for other in others]] == ["first", *[[i] for i in range(9)]]


def test_a_call_that_does_not_fit_any_more_waits_for_the_next_batch(model):
    runner = model(max_batch_size=10)
    _, batch = busy(runner)
    sixes = call_in_order(runner, ["a"] * 6, ["b"] * 6)
    batch.echo()
    for expected in ("a", "b"):
        batch = runner.expect_batch()
        assert batch.rows == [expected] * 6
        batch.echo()
    assert [caller.result() for caller in sixes] == [["a"] * 6, ["b"] * 6]


def test_a_call_that_fits_is_never_split_and_order_is_kept(model):
    runner = model(max_batch_size=10)
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"] * 3, ["b"] * 5, ["c"] * 3, ["d"], ["e"] * 6)
    batch.echo()
    seen = []
    for _ in range(2):
        batch = runner.expect_batch()
        seen.append("".join(batch.rows))
        batch.echo()
    assert seen == ["aaabbbbb", "cccdeeeeee"]
    assert [len(caller.result()) for caller in callers] == [3, 5, 3, 1, 6]


def test_a_larger_call_is_cut_and_its_last_part_joins_others(model):
    runner = model(max_batch_size=10)
    _, batch = busy(runner)
    big, small = call_in_order(runner, list(range(12)), ["s"])
    batch.echo()
    full, rest = runner.expect_batch(), None
    assert full.rows == list(range(10))
    full.echo()
    rest = runner.expect_batch()
    assert rest.rows == [10, 11, "s"]
    rest.echo()
    assert big.result() == list(range(12))
    assert small.result() == ["s"]


def test_a_call_without_rows_is_joined_like_any_other_and_alone_runs_an_empty_batch(model):
    runner = model()
    _, batch = busy(runner)
    empty, one = call_in_order(runner, [], ["a"])
    batch.echo()
    batch = runner.expect_batch()
    assert batch.rows == ["a"]
    batch.echo()
    assert (empty.result(), one.result()) == ([], ["a"])
    alone = Caller(runner.run_batch, [])
    batch = runner.expect_batch()
    assert batch.rows == []
    batch.echo()
    assert alone.result() == []


def test_parts_of_different_kinds_are_an_error_that_names_both(model):
    runner = model(max_batch_size=2)
    call = Caller(runner.run_batch, [1, 2, 3, 4])
    runner.expect_batch().reply([1, 2])
    runner.expect_batch().reply(np.array([3, 4]))
    with pytest.raises(RunnerError, match=r"list.*int64|list.*ndarray"):
        call.result()


def test_the_first_part_that_fails_fails_the_call_and_cancels_the_rest(model):
    runner = model(max_batch_size=2)
    call = Caller(runner.run_batch, [1, 2, 3, 4, 5, 6])
    runner.expect_batch().fail(ValueError("part one"))
    with pytest.raises(RunnerError, match="part one"):
        call.result()
    after = Caller(runner.run, "after")
    batch = runner.expect_batch()
    assert batch.rows == ["after"]
    batch.echo()
    assert after.result() == "after"


def test_batches_are_padded_to_an_allowed_size_with_the_last_row_and_cut_again(model):
    runner = model(max_batch_size=4, allowed_batch_sizes=[1, 4])
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"], ["b"], ["c"])
    batch.echo()
    rows = []
    while len([row for row in rows if row in "abc"]) < 3:
        batch = runner.expect_batch()
        assert len(batch.rows) in (1, 4)
        rows += dict.fromkeys(batch.rows)
        batch.echo()
    assert [caller.result() for caller in callers] == [["a"], ["b"], ["c"]]


def test_concurrency_runs_as_many_batches_at_once(model):
    runner = model(max_batch_size=1, concurrency=2)
    callers = [Caller(runner.run, i) for i in range(3)]
    first, second = runner.expect_batch(), runner.expect_batch()
    queued(runner, 1)
    runner.expect_idle()
    first.echo()
    third = runner.expect_batch()
    second.echo()
    third.echo()
    assert sorted(caller.result() for caller in callers) == [0, 1, 2]


def test_options_apply_from_the_next_batch_on(model):
    runner = model(max_batch_size=2)
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"], ["b"], ["c"])
    runner.options = replace(runner.options, max_batch_size=3)
    batch.echo()
    batch = runner.expect_batch()
    assert batch.rows == ["a", "b", "c"]
    batch.echo()
    assert [caller.result() for caller in callers] == [["a"], ["b"], ["c"]]
    with pytest.raises(ValueError, match="execution"):
        runner.options = replace(runner.options, execution="inline")
    with pytest.raises(TypeError, match="BatchOptions"):
        runner.options = {"max_batch_size": 3}


# ---- limits, deadlines, cancels --------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_how_full_it_is(model):
    runner = model(max_queue_rows=3, max_batch_size=2)
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"], ["b", "c"])
    with pytest.raises(Overloaded, match=r"3 rows are queued.*max_queue_rows, 3") as caught:
        runner.run("d")
    assert caught.value.predicted_ms is None
    batch.echo()
    runner.expect_batch().echo()
    runner.expect_batch().echo()
    assert [caller.result() for caller in callers] == [["a"], ["b", "c"]]
    assert runner.statistics().refused == 1


def test_a_call_that_is_predicted_to_be_late_is_refused_at_once_with_the_prediction():
    clock = FakeClock()
    runner = ScriptedModel(clock, options=BatchOptions())
    for rows in (1, 2, 4, 1, 2, 4):
        caller = Caller(runner.run_batch, [0] * rows)
        batch = runner.expect_batch()
        clock.advance(ms=10 + rows)
        batch.echo()
        caller.result()
    first, batch = busy(runner)
    with pytest.raises(Overloaded, match=r"predicted in \d+\.?\d* ms, after the call's 2 ms") as caught:
        runner.run("late", deadline_ms=2)
    assert 20 < caught.value.predicted_ms < 40  # what is left of the batch that runs, and a batch of its own
    batch.echo()
    assert first.result() == "first"
    runner.close()


def test_a_deadline_passes_while_the_batch_runs_and_nobody_else_notices(model):
    runner = model(real_time=True)
    blocked = Caller(runner.run, "slow", deadline_ms=20)
    batch = runner.expect_batch()
    with pytest.raises(DeadlineExceeded, match="20 ms"):
        blocked.result()
    batch.echo()
    after = Caller(runner.run, "after")
    runner.expect_batch().echo()
    assert after.result() == "after"


def test_a_deadline_passes_in_the_queue_and_the_call_never_reaches_the_model(model):
    runner = model(real_time=True)
    first, batch = busy(runner)

    async def late() -> None:
        with pytest.raises(DeadlineExceeded):
            await runner.async_run("late", deadline_ms=10)

    asyncio.run(late())
    other = Caller(runner.run, "other")
    queued(runner, 1)
    batch.echo()
    batch = runner.expect_batch()
    assert batch.rows == ["other"]
    batch.echo()
    assert (first.result(), other.result()) == ("first", "other")


def test_a_call_whose_deadline_passes_is_counted_as_expired_and_one_given_up_as_cancelled(model):
    runner = model(real_time=True)
    first, batch = busy(runner)

    async def late_and_impatient() -> None:
        with pytest.raises(DeadlineExceeded):
            await runner.async_run("late", deadline_ms=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.async_run("impatient", deadline_ms=60_000), 0.001)

    asyncio.run(late_and_impatient())
    with pytest.raises(DeadlineExceeded):
        runner.run("late as well", deadline_ms=1)
    batch.echo()
    first.result()
    numbers = runner.statistics()
    assert (numbers.answered, numbers.expired, numbers.cancelled) == (1, 2, 1)


def test_deadline_ms_replaces_max_latency_ms(model):
    runner = model(max_latency_ms=10, real_time=True)
    with pytest.raises(DeadlineExceeded, match="10 ms"):
        runner.run("a")
    patient = Caller(runner.run, "b", deadline_ms=1e9)
    runner.expect_batch().echo()
    runner.expect_batch().echo()
    assert patient.result() == "b"


def test_a_budget_below_the_cost_of_one_row_is_warned_about_once_with_both_numbers():
    clock = FakeClock()

    class Slow(Runner):
        _clock = clock

        def _run_batch(self, x: Any) -> Any:
            clock.advance(ms=10 + len(x))
            return x

    with Slow(options=BatchOptions(max_latency_ms=5, execution="inline")) as runner:

        def call(rows: int) -> None:
            with contextlib.suppress(DeadlineExceeded, Overloaded):
                runner.run_batch([0] * rows)

        for rows in (1, 2, 4, 1, 2, 4, 1):
            call(rows)
        with pytest.warns(RuntimeWarning, match=r"'Slow'.*one row takes 1\d(\.\d+)? ms.*max_latency_ms, 5"):
            call(1)
        for _ in range(40):
            call(1)


def test_a_cancelled_call_never_reaches_the_model_and_frees_its_place(model):
    runner = model(max_queue_rows=2, max_batch_size=2)

    async def scenario() -> None:
        first = asyncio.ensure_future(runner.async_run("first"))
        batch = await asyncio.to_thread(runner.expect_batch)
        a, b = (asyncio.create_task(runner.async_run(name)) for name in "ab")
        await asyncio.sleep(0)
        assert runner.statistics().queued_rows == 2
        a.cancel()
        await asyncio.wait([a])
        assert a.cancelled()
        assert runner.statistics().queued_rows == 1
        c = asyncio.create_task(runner.async_run("c"))
        await asyncio.sleep(0)
        batch.echo()
        together = await asyncio.to_thread(runner.expect_batch)
        assert together.rows == ["b", "c"]
        together.echo()
        assert await asyncio.gather(first, b, c) == ["first", "b", "c"]

    asyncio.run(scenario())
    assert runner.statistics().cancelled == 1


def test_a_call_that_is_cancelled_while_it_runs_leaves_the_others_alone(model):
    runner = model()

    async def scenario() -> None:
        tasks = [asyncio.create_task(runner.async_run(name)) for name in "ab"]
        batch = await asyncio.to_thread(runner.expect_batch)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        batch.echo()
        if batch.rows == ["a"]:  # the worker was quicker than the second task
            (await asyncio.to_thread(runner.expect_batch)).echo()
        assert await tasks[1] == "b"
        both = [asyncio.create_task(runner.async_run(name)) for name in "cd"]
        batch = await asyncio.to_thread(runner.expect_batch)
        for task in both:
            task.cancel()
        batch.fail(ValueError("nobody is there to hear it"))
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*both, return_exceptions=True)
        )

    asyncio.run(scenario())
    after = Caller(runner.run, "after")
    runner.expect_batch().echo()
    assert after.result() == "after"


def test_asyncio_timeout_and_task_groups_work_as_on_any_coroutine(model):
    runner = model()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await runner.async_run("a")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(runner.async_run("b"), 0.01)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 (what a group raises, it raises at its end)
            async with asyncio.TaskGroup() as group:
                group.create_task(runner.async_run("c"))
                group.create_task(failing())
        assert caught.group_contains(ZeroDivisionError)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    asyncio.run(scenario())


def test_a_coroutine_is_submitted_when_it_is_first_awaited_and_only_once(model):
    runner = model()

    async def scenario() -> None:
        call = runner.async_run("a")
        await asyncio.sleep(0)
        assert runner.statistics().calls == 0
        task = asyncio.create_task(call)
        (await asyncio.to_thread(runner.expect_batch)).echo()
        assert await task == "a"
        with pytest.raises(RuntimeError, match="already awaited"):
            await call

    asyncio.run(scenario())


def test_a_call_that_is_never_awaited_warns_like_any_coroutine(model):
    runner = model()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        runner.async_run("a")
    assert runner.statistics().calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["thread", "inline"])
def test_ctrl_c_in_a_blocked_run_cancels_the_call(execution):
    program = f"""
import signal, threading
from batching import BatchOptions, Runner

signal.signal(signal.SIGINT, signal.default_int_handler)
started, release, interrupted = threading.Event(), threading.Event(), threading.Event()

class Slow(Runner):
    def _run_batch(self, x):
        started.set()
        release.wait()
        return x

def interrupt():
    started.wait()
    # Again if it came just before the main thread began to wait, in this test's own lock.
    while True:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if interrupted.wait(2):
            return

slow = Slow(options=BatchOptions(execution={execution!r}))
threading.Thread(target=interrupt).start()
try:
    slow.run(1)
except KeyboardInterrupt:
    interrupted.set()
    print("interrupted")
release.set()
print(slow.run(2), slow.statistics().queued_calls)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("interrupted\n2 0\n", "")


# ---- errors --------------------------------------------------------------------------------------


def test_a_batch_that_raises_is_bisected_until_the_guilty_call_is_alone(model):
    runner = model()
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"], ["b"], ["bad"], ["c"])
    batch.echo()
    runs = []
    while True:
        batch = runner.expect_batch()
        runs.append(batch.rows)
        if "bad" in batch.rows:
            batch.fail(ValueError("bad"))
        else:
            batch.echo()
        if runner.statistics().queued_calls == 0 and batch.rows == ["c"]:
            break
    assert runs == [["a", "b", "bad", "c"], ["a", "b"], ["bad", "c"], ["bad"], ["c"]]
    with pytest.raises(RunnerError, match="bad"):
        callers.pop(2).result()
    assert [caller.result() for caller in callers] == [["a"], ["b"], ["c"]]


def test_without_isolation_a_batch_that_raises_fails_whole_and_once(model):
    runner = model(isolate_errors=False)
    _, batch = busy(runner)
    callers = call_in_order(runner, ["a"], ["b"])
    batch.echo()
    runner.expect_batch().fail(ValueError("bad"))
    for caller in callers:
        with pytest.raises(RunnerError, match="bad"):
            caller.result()
    runner.expect_idle()


def test_stop_iteration_from_the_model_or_a_row_reaches_a_coroutine(model):
    runner = model()

    async def scenario() -> None:
        task = asyncio.create_task(runner.async_run("a"))
        (await asyncio.to_thread(runner.expect_batch)).fail(StopIteration("model"))
        with pytest.raises(RunnerError, match="StopIteration"):
            await task
        task = asyncio.create_task(runner.async_run("b"))
        (await asyncio.to_thread(runner.expect_batch)).reply([StopIteration("row")])
        with pytest.raises(RunnerError, match="StopIteration"):
            await task

    asyncio.run(scenario())


def test_system_exit_in_the_model_is_an_error_of_the_batch(model):
    runner = model()
    caller = Caller(runner.run, "a")
    runner.expect_batch().fail(SystemExit(3))
    with pytest.raises(RunnerError, match="SystemExit"):
        caller.result()
    after = Caller(runner.run, "b")
    runner.expect_batch().echo()
    assert after.result() == "b"


def test_a_bucket_whose_hash_raises_fails_its_own_call_only():
    class Hostile:
        def __hash__(self) -> int:
            raise ZeroDivisionError("hash")

    class Bucketed(Runner):
        def group_by(self, item: Any) -> Any:
            return Hostile() if item == 1 else item

        def _run_batch(self, x: Any) -> Any:
            return x

    with Bucketed() as runner:
        with pytest.raises(RunnerError, match="group_by raised ZeroDivisionError: hash"):
            runner.run(1)
        assert runner.run(2) == 2


def test_a_runner_without_run_batch_says_so():
    class Nothing(Runner):
        pass

    with pytest.raises(TypeError, match="Nothing does not implement _run_batch"):
        Nothing().run(1)


def test_run_batch_must_not_name_deadline_ms():
    class Reserved(Runner):
        def _run_batch(self, x: Any, deadline_ms: float = 1.0) -> Any:
            return x

    with pytest.raises(TypeError, match="deadline_ms"):
        Reserved().run(1)


@pytest.mark.parametrize("execution", ["thread", "inline"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_whatever_a_model_raises_ends_in_its_batch(error, execution):
    class Raises(Runner):
        def _run_batch(self, x: list[Any]) -> Any:
            if "bad" in x:
                raise error("from the model")
            return x

    async def scenario(runner: Runner) -> list[Any]:
        calls = (asyncio.wait_for(runner.async_run(item), PATIENCE_S) for item in ("a", "bad", "b"))
        return await asyncio.gather(*calls, return_exceptions=True)

    with Raises(options=BatchOptions(execution=execution)) as runner:
        if execution == "inline" and error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):  # as it would be Ctrl-C, on this very thread
                runner.run("bad")
        else:
            a, bad, b = asyncio.run(scenario(runner))
            assert (a, b) == ("a", "b")
            assert isinstance(bad, RunnerError)
            assert bad.type_name == error.__name__
        assert runner.run("after") == "after"


def test_an_error_of_this_package_from_the_model_is_the_runners_error():
    class Particular(RunnerClosed):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    class Raises(Runner):
        def _run_batch(self, x: list[Any]) -> Any:
            raise Particular(1, 2) if x == [1] else RunnerClosed("an inner pool")

    with Raises() as runner:
        with pytest.raises(RunnerError, match="Particular: 1 and 2"):
            runner.run(1)
        with pytest.raises(RunnerError, match="RunnerClosed: an inner pool"):
            runner.run(2)


# ---- threads and loops ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["thread", "inline"])
def test_many_threads_and_loops_share_one_queue_and_every_answer_is_right(execution):
    with models.Double(options=BatchOptions(execution=execution, max_batch_size=16)) as runner:

        def thread(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(100):
                x = chance.random()
                assert runner.run(np.array([x, 1.0]))[0] == 2 * x

        async def coroutines(seed: int) -> None:
            chance = random.Random(seed)

            async def one() -> None:
                x = chance.random()
                rows = np.full((chance.randrange(40), 2), x)
                assert (await runner.async_run_batch(rows) == 2 * x).all()

            await asyncio.gather(*[one() for _ in range(50)])

        with ThreadPoolExecutor(12) as pool:
            work = [pool.submit(thread, seed) for seed in range(8)]
            work += [pool.submit(asyncio.run, coroutines(seed)) for seed in range(2)]
            work += [pool.submit(uvloop.run, coroutines(seed)) for seed in range(2, 4)]
            for future in work:
                future.result(PATIENCE_S * 2)
        numbers = runner.statistics()
        assert numbers.answered == numbers.calls == 8 * 100 + 4 * 50
        assert numbers.queued_calls == numbers.in_flight_batches == 0
        assert max(i for i, count in enumerate(numbers.batch_rows) if count) > 0


def test_run_works_on_the_thread_of_a_running_loop():
    """As in a notebook's cell: the loop is there, and cannot turn while `run` blocks."""

    async def cell(runner: Runner) -> Any:
        pending = asyncio.create_task(runner.async_run(np.array([1.0])))
        await asyncio.sleep(0)
        blocking = runner.run(np.array([2.0]))
        return blocking, await pending

    for execution in ("thread", "inline"):
        with models.Double(options=BatchOptions(execution=execution)) as runner:
            assert asyncio.run(cell(runner)) == (4.0, 2.0)


def test_inline_batches_never_run_two_at_once():
    running = threading.Semaphore(1)

    class Alone(Runner):
        def _run_batch(self, x: np.ndarray) -> np.ndarray:
            assert running.acquire(blocking=False)
            threading.Event().wait(0.001)
            running.release()
            return x

    options = BatchOptions(execution="inline", max_batch_size=4)
    with Alone(options=options) as runner, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: runner.run(np.array([i]))[0], range(64)))
    assert answers == list(range(64))


def test_setup_batches_and_shutdown_share_one_thread():
    seen: list[int] = []

    class Threads(Runner):
        def _setup(self) -> None:
            seen.append(threading.get_ident())

        def _run_batch(self, x: Any) -> Any:
            seen.append(threading.get_ident())
            return x

        def _shutdown(self) -> None:
            seen.append(threading.get_ident())

    with Threads() as runner:
        runner.run(1)
        runner.run(2)
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()


def test_a_loop_that_is_closed_with_calls_in_the_queue_strands_nobody_else(model):
    runner = model()
    _, batch = busy(runner)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_swallow(runner.async_run("stranded")))
    loop.run_until_complete(asyncio.sleep(0))
    queued(runner, 1)
    loop.close()
    other = Caller(runner.run, "other")
    queued(runner, 2)
    batch.echo()
    runner.expect_batch().echo()
    assert other.result() == "other"
    assert not task.done()
    task._log_destroy_pending = False


async def _swallow(call: Any) -> Any:
    return await call


def test_four_batches_run_at_once_when_four_may(model):
    runner = model(max_batch_size=1, concurrency=4)
    callers = [Caller(runner.run, i) for i in range(4)]
    for batch in [runner.expect_batch() for _ in range(4)]:
        batch.echo()
    assert sorted(caller.result() for caller in callers) == [0, 1, 2, 3]


@pytest.mark.parametrize("execution", ["thread", "inline"])
def test_a_call_from_inside_setup_is_an_error_and_options_can_be_set_there(execution):
    class Curious(Runner):
        def _setup(self) -> None:
            self.options = replace(self.options, max_batch_size=3)
            with pytest.raises(RunnerError, match="inside"):
                self.run(1)

        def _run_batch(self, x: Any) -> Any:
            return x

    with Curious(options=BatchOptions(execution=execution)) as runner:
        assert runner.run(2) == 2
        assert runner.options.max_batch_size == 3


def test_a_deadline_may_be_a_number_of_numpys():
    with models.Echo(options=BatchOptions(max_latency_ms=np.float32(1e6))) as runner:
        assert runner.run(1, deadline_ms=np.int64(1_000_000)) == 1
        assert runner.run(1) == 1


def test_run_of_a_simple_runner_must_not_name_deadline_ms():
    class Reserved(SimpleRunner):
        def _run(self, x: Any, deadline_ms: float = 7) -> Any:
            return deadline_ms

    with pytest.raises(TypeError, match="deadline_ms"):
        Reserved().run(1)


# ---- the end ---------------------------------------------------------------------------------------------


def test_close_answers_what_was_accepted_and_refuses_what_comes_later(model):
    runner = model(real_time=True)
    first, batch = busy(runner)
    second = Caller(runner.run, "second")
    queued(runner, 1)
    closer = Caller(runner.close)
    wait_until(lambda: refuses(runner), "the runner refuses calls")
    batch.echo()
    runner.expect_batch().echo()
    closer.result()
    assert (first.result(), second.result()) == ("first", "second")


def refuses(runner: Runner) -> bool:
    try:
        runner.run("x", deadline_ms=1)
    except RunnerClosed:
        return True
    except DeadlineExceeded:
        return False
    raise AssertionError("nobody answers this call")


def test_close_with_a_time_limit_fails_the_rest(model):
    runner = model()
    first, batch = busy(runner)
    second = Caller(runner.run, "second")
    queued(runner, 1)
    runner.close(timeout_s=0.01)
    for caller in (first, second):
        with pytest.raises(RunnerClosed, match=r"0\.01 s"):
            caller.result()
    batch.echo()


def test_a_second_close_does_nothing_even_after_one_that_ran_out_of_time(model):
    runner = model()
    caller, batch = busy(runner)
    runner.close(timeout_s=0.01)
    Caller(runner.close).result()
    batch.echo()
    with pytest.raises(RunnerClosed):
        caller.result()


@pytest.mark.parametrize("execution", ["thread", "inline"])
@pytest.mark.parametrize("end", ["close", "setup fails"])
def test_a_call_whose_description_outlasts_the_engine_is_refused(end, execution):
    describing, go_on = threading.Event(), threading.Event()
    setting_up, fail = threading.Event(), threading.Event()

    class Slow(Runner):
        def _setup(self) -> None:
            setting_up.set()
            if end == "setup fails":
                fail.wait(PATIENCE_S)
                raise OSError("no model")

        def group_by(self, item: Any) -> Any:
            describing.set()
            go_on.wait(PATIENCE_S)
            return 0

        def _run_batch(self, x: Any) -> Any:
            return x

    runner = Slow(options=BatchOptions(execution=execution))
    first = Caller(runner.statistics)  # starts the engine
    assert setting_up.wait(PATIENCE_S)
    late = Caller(runner.run, 1)
    assert describing.wait(PATIENCE_S)
    if end == "close":
        runner.close()
    else:
        fail.set()
        wait_until(lambda: runner._bound()._failed, "the engine knows of the failure")
    go_on.set()
    with pytest.raises(RunnerClosed if end == "close" else RunnerError):
        late.result()
    first.result()


@pytest.mark.parametrize("execution", ["thread", "inline"])
def test_a_shutdown_that_raises_is_raised_by_close_once(execution):
    class Raises(Runner):
        def _run_batch(self, x: Any) -> Any:
            return x

        def _shutdown(self) -> None:
            raise OSError("cannot unmap")

    runner = Raises(options=BatchOptions(execution=execution))
    assert runner.run(1) == 1
    with pytest.raises(RunnerError, match="_shutdown raised OSError: cannot unmap"):
        runner.close()
    runner.close()


def test_an_inline_runner_whose_setup_failed_is_not_shut_down():
    class Fails(Runner):
        def _setup(self) -> None:
            raise OSError("no model")

        def _run_batch(self, x: Any) -> Any:
            return x

        def _shutdown(self) -> None:
            raise AssertionError("nothing was set up")

    with (
        Fails(options=BatchOptions(execution="inline")) as runner,
        pytest.raises(RunnerError, match="no model"),
    ):
        runner.run(1)


def test_closing_from_inside_a_batch_is_an_error():
    class Suicidal(Runner):
        def _run_batch(self, x: Any) -> Any:
            self.close()
            return x

    runner = Suicidal()
    with pytest.raises(RunnerError, match="inside"):
        runner.run(1)


def test_async_with_closes_without_blocking_the_loop():
    async def scenario() -> None:
        async with models.Double() as runner:
            task = asyncio.create_task(runner.async_run(np.ones(2)))
            await asyncio.sleep(0)
        assert (await task == 2).all()
        with pytest.raises(RunnerClosed):
            await runner.async_run(np.ones(2))

    asyncio.run(scenario())


def test_a_runner_that_nobody_refers_to_takes_its_thread_with_it():
    runner = models.Echo()
    assert runner.run(1) == 1
    thread = runner._bound().driver._thread
    gone = weakref.ref(runner)
    del runner
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_what_a_runner_is_before_setup_is_what_travels():
    import pickle

    runner = models.AsyncDouble("a name!", options=BatchOptions(max_batch_size=7))
    runner.extra = [1]
    assert runner.name == "a_name_"
    assert (runner.run(np.ones(1)) == 2).all()
    assert runner.factor == 2
    twin = pickle.loads(pickle.dumps(runner))
    assert (twin.name, twin.options.max_batch_size, twin.__dict__) == ("a_name_", 7, {"extra": [1]})
    runner.close()


def test_a_subclass_need_not_call_the_base_class_initialiser():
    class Own(Runner):
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def _run_batch(self, x: np.ndarray) -> np.ndarray:
            return x * self.factor

    with Own(3) as runner:
        assert runner.name == "Own"
        assert runner.run(np.array([2]))[0] == 6


def test_names_that_are_no_identifier_are_made_one():
    assert models.Echo("my model/v2").name == "my_model_v2"
    assert models.Echo("2fast").name == "_2fast"
    with pytest.raises(TypeError, match="name"):
        models.Echo("")


def test_arrays_of_a_key_that_changes_per_call_are_counted_as_groups():
    with models.Echo() as runner:
        for i in range(5):
            runner.run(np.zeros(i))
        assert runner.statistics().groups == 5


def test_a_call_larger_than_the_queue_names_both_numbers(model):
    runner = model(max_queue_rows=4, max_batch_size=4)
    with pytest.raises(InvalidPayload, match=r"5 rows.*max_queue_rows, 4"):
        runner.run_batch([1, 2, 3, 4, 5])
