"""The family of errors: what a caller can catch, and what survives a process border."""

from __future__ import annotations

import copy
import pickle

import pytest

import batching
from batching import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]
SAMPLES = [
    errors.BatchingError("base"),
    errors.InvalidPayload("one row too many: 3"),
    errors.Overloaded("65536 rows are waiting", predicted_ms=12.5),
    errors.Overloaded("65536 rows are waiting"),
    errors.DeadlineExceeded("5 ms have passed"),
    errors.RunnerError("KeyError: 'a'", type_name="KeyError", message="'a'", traceback="Traceback ..."),
    errors.WorkerDied("worker 1 was killed by signal 9", signal=9),
    errors.WorkerDied("worker 1 exited with 3", exit_code=3),
    errors.ServiceUnreachable("nobody listens at ipc:///nowhere"),
    errors.RunnerClosed("the runner 'iris' is closed"),
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_of_the_family_and_public(cls: type[Exception]) -> None:
    assert issubclass(cls, errors.BatchingError)
    assert getattr(batching, cls.__name__) is cls


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InvalidPayload, TypeError),
        (errors.InvalidPayload, ValueError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.ServiceUnreachable, ConnectionError),
    ],
)
def test_errors_are_what_a_caller_would_catch_anyway(cls: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)


@pytest.mark.parametrize(
    "cls", [errors.Overloaded, errors.RunnerError, errors.WorkerDied, errors.RunnerClosed]
)
def test_other_errors_are_caught_as_nothing_else(cls: type[Exception]) -> None:
    assert not issubclass(cls, (TypeError, ValueError, OSError))


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(error: errors.BatchingError, protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_copies_are_instances_of_their_own(error: errors.BatchingError) -> None:
    twin = copy.copy(error)
    twin.add_note("seen by one caller")
    assert not hasattr(error, "__notes__")


def test_overloaded_carries_the_prediction() -> None:
    assert errors.Overloaded("full", predicted_ms=3.0).predicted_ms == 3.0
    assert errors.Overloaded("full").predicted_ms is None


def test_worker_died_says_how() -> None:
    killed = errors.WorkerDied("killed", signal=9)
    assert (killed.exit_code, killed.signal) == (None, 9)


def test_runner_error_keeps_the_three_texts() -> None:
    error = errors.RunnerError("text", type_name="KeyError", message="'a'", traceback="Traceback ...")
    assert (error.type_name, error.message, error.traceback) == ("KeyError", "'a'", "Traceback ...")
