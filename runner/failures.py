"""Errors across the process border: an exception to an ERROR record, and back.

Guarantees      1. the type's name, the message and the formatted traceback always
                   survive, as text, whatever the exception does when it is asked;
                2. the exception itself travels only if it survived a round trip where
                   it was raised, and is unpickled only where the caller says so;
                3. every call of `error_of` makes a new instance.
"""

from __future__ import annotations

import pickle

import cloudpickle  # type: ignore[import-untyped]

from .. import errors
from ..signature import InvalidResult
from .wire import NONE, Code, Failure

__all__ = ["error_of", "model_failure"]

_NS_PER_MS = 1e6


def model_failure(error: BaseException, hook: str, id_: int = 0) -> Failure:
    """What the runner's `hook` raised, as a record. Never raises."""
    own = errors.RunnerError.from_exception(hook, error)
    return Failure(id_, Code.RUNNER_ERROR, str(own), own.type_name, own.traceback, _cause(error))


def error_of(failure: Failure, *, allow_pickle: bool) -> errors.BatchingError:
    """A record as an exception to raise; a new one each time."""
    message = failure.message
    match failure.code:
        case Code.RUNNER_ERROR | Code.BAD_RESULT:
            return _runner_error(failure, allow_pickle)
        case Code.INVALID_PAYLOAD | Code.MALFORMED:
            return errors.InvalidPayload(message)
        case Code.OVERLOADED:
            predicted = None if failure.number == NONE else failure.number / _NS_PER_MS
            return errors.Overloaded(message, predicted)
        case Code.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(message)
        case Code.WORKER_DIED:
            return errors.WorkerDied(message, _optional(failure.exit_code), _optional(failure.number))
        case Code.CLOSED:
            return errors.RunnerClosed(message)
        case _:
            return errors.ServiceUnreachable(message)


def _runner_error(failure: Failure, allow_pickle: bool) -> errors.RunnerError:
    text, name = failure.message, failure.type_name
    if failure.code == Code.BAD_RESULT:
        return InvalidResult(text)
    # The record has one text; what follows the prefix is the exception's own.
    _, _, message = text.partition(f" raised {name}: ")
    error = errors.RunnerError(text, name, message or text, failure.traceback)
    if failure.cause and allow_pickle:
        error.__cause__ = _unpickled(failure.cause)
    return error


def _unpickled(blob: bytes) -> BaseException | None:
    # It was whole where it was raised; here a class may be missing or behave differently.
    try:
        cause = pickle.loads(blob)
    except BaseException:
        return None
    return cause if isinstance(cause, BaseException) else None


def _cause(error: BaseException) -> bytes:
    try:
        blob: bytes = cloudpickle.dumps(error)
        again = pickle.loads(blob)
    except BaseException:
        return b""
    return blob if type(again).__name__ == type(error).__name__ else b""


def _optional(number: int) -> int | None:
    return None if number == NONE else number
