"""Every exception of the package: one family, one file.

All of them can be pickled, and every caller gets an instance of its own, so
that a traceback or a note added by one caller is never seen by another.
"""

from __future__ import annotations

from traceback import format_exception, format_tb
from typing import Self

__all__ = [
    "BatchingError",
    "DeadlineExceeded",
    "InvalidPayload",
    "Overloaded",
    "RunnerClosed",
    "RunnerError",
    "ServiceUnreachable",
    "WorkerDied",
]


class BatchingError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidPayload(BatchingError, TypeError, ValueError):
    """The call itself is at fault: a type, shape or row count that breaks a rule.

    Nobody else's call is disturbed. The message names the rule and the values.
    """


class Overloaded(BatchingError):
    """Refused at admission; nothing ran.

    Attributes:
        predicted_ms: milliseconds until an answer was to be expected, or None
            while the cost of a batch is not known yet.
    """

    def __init__(self, message: str, predicted_ms: float | None = None) -> None:
        super().__init__(message)
        self.predicted_ms = predicted_ms

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.predicted_ms)


class DeadlineExceeded(BatchingError, TimeoutError):
    """The call's deadline passed, while it was queued or while its batch ran."""


class RunnerError(BatchingError):
    """The runner's own code raised, or returned something that cannot be split.

    In one process the original exception is the ``__cause__``. Across a process
    border the three texts always survive; the original is the cause only if it
    could be pickled and unpickled in the worker.

    Attributes:
        type_name: name of the original exception's type.
        message: its text.
        traceback: the formatted traceback of the process that ran the batch.
    """

    def __init__(self, text: str, type_name: str = "", message: str = "", traceback: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    @classmethod
    def from_exception(cls, hook: str, error: BaseException) -> Self:
        """A new instance about what the runner's ``hook`` raised, with it as the cause.

        Never raises, whatever the exception does when it is asked for its text.
        """
        name, message = type(error).__name__, _text(error)
        own = cls(f"{hook} raised {name}: {message}", name, message, _traceback(error))
        own.__cause__ = error
        return own

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.type_name, self.message, self.traceback)


class InvalidResult(RunnerError):
    """`_run_batch` returned something that cannot be cut into its callers' rows.

    Internal: callers catch `RunnerError`.
    """


class WorkerDied(BatchingError):
    """The worker process that held the call's batch died.

    Attributes:
        exit_code: the process's exit status, or None if a signal ended it or
            the worker runs on another machine.
        signal: the number of that signal, or None.
    """

    def __init__(self, message: str, exit_code: int | None = None, signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.exit_code, self.signal)


class ServiceUnreachable(BatchingError, ConnectionError):
    """Nobody there: no dispatcher, an unknown name, another protocol version, or
    a connection lost while the call was out. The call is never sent again."""


class RunnerClosed(BatchingError):
    """The runner or service was closed, or not started yet."""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as second:
        return f"<the text of this {type(error).__name__} raised {type(second).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(format_exception(error))
    except BaseException:
        return "".join(format_tb(error.__traceback__))
