"""`Runner` and `SimpleRunner`: what users subclass."""

from __future__ import annotations

import inspect
import os
import re
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .._native.calls import Handle, ItemHandle
from ..budget import warn_if_below_one_row
from ..embedded import Hooks, start
from ..errors import RunnerClosed
from ..options import BatchOptions
from ..signature import Signature
from ..statistics import Statistics
from .closing import Closing

if TYPE_CHECKING:
    from ..payloads import Kind

__all__ = ["Runner", "SimpleRunner"]


_locals: weakref.WeakSet[_Local] = weakref.WeakSet()


class _Local:
    """What a runner keeps in this process and outside the user's ``__dict__``."""

    def __init__(self, name: str, options: BatchOptions) -> None:
        self.name = name
        self.options = options
        self.lock = threading.Lock()
        self.closed = False
        self.recipe: dict[str, Any] | None = None
        _locals.add(self)


class _Recipe(Closing):
    """What Runner and SimpleRunner share: name, options, life, and how they travel.

    A runner is a recipe: what stands in its ``__dict__`` before ``_setup`` is what is
    shipped to workers.
    """

    _class_options: ClassVar[BatchOptions] = BatchOptions()
    _clock: Callable[[], int] | None = None  # nanoseconds, in tests; None: CLOCK_MONOTONIC
    _local: _Local | None
    _bind: Callable[[Any], None]
    _bound: Callable[[], Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `options = BatchOptions(...)` in a class body is the default of its instances,
        # and must not hide the property.
        default = cls.__dict__.get("options")
        if isinstance(default, BatchOptions):
            cls._class_options = default
            del cls.options

    def __init__(self, name: str | None = None, *, options: BatchOptions | None = None) -> None:
        self._local = _Local(
            _identifier(type(self).__name__ if name is None else name),
            _checked(self._class_options if options is None else options),
        )

    @property
    def _state(self) -> _Local:
        """The local state, also of a subclass whose ``__init__`` does not call this one's."""
        if self._local is None:
            self._local = _Local(_identifier(type(self).__name__), self._class_options)
        return self._local

    @property
    def name(self) -> str:
        """The runner's name, an identifier."""
        return self._state.name

    @property
    def options(self) -> BatchOptions:
        """The options; assigning new ones takes effect from the next batch on.

        ``execution`` and ``static_args`` cannot be changed once the first call was made.
        """
        return self._state.options

    @options.setter
    def options(self, options: BatchOptions) -> None:
        state = self._state
        with state.lock:
            engine = self._bound()
            if engine is not None:
                for field in ("execution", "static_args"):
                    old, new = getattr(state.options, field), getattr(_checked(options), field)
                    if old != new:
                        raise ValueError(
                            f"{field} cannot be changed after the first call: {old!r} to {new!r}"
                        )
                engine.set_options(options)
            state.options = _checked(options)

    def statistics(self) -> Statistics:
        """The embedded engine's numbers; a runner without a call yet starts it."""
        if self._bound() is None:
            self._start()
        return Statistics.from_numbers(self._bound().statistics())

    def _check_budget(self) -> bool:
        budget_ms = self.options.max_latency_ms
        return budget_ms is not None and warn_if_below_one_row(self.name, self.statistics(), budget_ms)

    # ---- hooks -------------------------------------------------------------------

    def _setup(self) -> Any:
        """Loads the model. Called once per worker, before the first batch. May be ``async def``."""

    def _shutdown(self) -> Any:
        """Called once per worker, after the last batch. May be ``async def``."""

    def _hook(self) -> Callable[..., Any]:
        """The hook that runs batches."""
        raise NotImplementedError

    def _signature(self) -> Signature | None:
        """How calls become batches; None: they do not."""
        raise NotImplementedError

    # ---- life --------------------------------------------------------------------

    def _start(self) -> None:
        """The first call in this process: starts the embedded engine."""
        state = self._state
        with state.lock:
            if state.closed:
                raise RunnerClosed(f"runner {state.name!r} is closed")
            if self._bound() is not None:
                return
            # The signature first: a recipe that cannot work must not start a thread.
            signature = self._signature()
            if state.recipe is None:
                state.recipe = dict(self.__dict__)
            engine = start(Hooks(self, self._hook()), signature, state.options, clock=self._clock)
            self._bind(engine)
        # Without the lock: an inline `_setup` runs here, and may ask for what the lock guards.
        engine.driver.begin()

    def close(self, timeout_s: float | None = None) -> None:
        """Refuses new calls, answers what was accepted, then runs ``_shutdown``.

        A second close does nothing. Thread-safe; blocks, so that a coroutine uses
        ``async with`` instead. Not from inside ``_run_batch``.

        Args:
            timeout_s: seconds to wait for the answers; the calls that have none by then
                fail with `RunnerClosed`. None: as long as it takes.

        Raises:
            RunnerError: ``_shutdown`` raised.
            RuntimeError: called from inside a hook.
        """
        state = self._state
        with state.lock:
            state.closed = True
            engine = self._bound()
        if engine is not None:
            engine.driver.close(timeout_s)

    # ---- travel --------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        state = self._state
        recipe = dict(self.__dict__) if state.recipe is None else state.recipe
        return _rebuild, (type(self), state.name, state.options, recipe)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Runner(_Recipe, Handle):
    """A model whose concurrent calls are run in batches.

    Subclass it, implement ``_run_batch`` and, to load the model, ``_setup``; then call
    `run`, `run_batch` or their coroutines from any thread and any event loop:

    >>> import numpy as np
    >>> class Double(Runner):
    ...     def _run_batch(self, x):  # x: (n, 2) -> (n, 2)
    ...         return x * 2
    >>> with Double() as double:
    ...     double.run(np.array([1.0, 2.0]))
    array([2., 4.])

    ============ ========================== ====================== =======================
    call         argument                   ``_run_batch`` sees    the caller gets
    ============ ========================== ====================== =======================
    run          ndarray of shape S         ndarray (n, *S)        row i of the result
    run          DataFrame of one row,      DataFrame of n rows    one-row DataFrame, or
                 or Series                                         element i
    run          anything else              list of n              element i
    run_batch    ndarray (k, *S),           the same kind, rows    its k rows, in order
                 DataFrame, Series, list    of several callers
    ============ ========================== ====================== =======================

    ``_run_batch`` returns an ndarray, DataFrame, Series or list with one row per row it
    was given, or a tuple of those; an Exception in a row of a list is raised to that
    caller alone. Its argument is its own memory; so is an answer the caller's.

    Args:
        name: what the runner is called in a service; default: the class's name.
        options: see `BatchOptions`; a class may give its own default as ``options``.

    Attributes:
        kinds: payload kinds beside the built-in ones; see docs/payloads.md.
        pad: how ndarray items of different length are joined; see docs/payloads.md.

    Raises (from calls):
        InvalidPayload: the call breaks a rule; nobody else's is disturbed.
        Overloaded: refused at once, since the queue is full or the deadline out of reach.
        DeadlineExceeded: ``deadline_ms`` or ``max_latency_ms`` passed.
        RunnerError: ``_setup`` or ``_run_batch`` raised, or returned what cannot be split.
        RunnerClosed: after `close`.
    """

    kinds: Sequence[Kind] = ()
    pad: Any = None
    group_by: Callable[[Any], Hashable] | None = None

    def _run_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one batch. May be ``async def``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _run_batch")

    def _hook(self) -> Callable[..., Any]:
        return self._run_batch

    def _signature(self) -> Signature:
        if type(self)._run_batch is Runner._run_batch:
            raise TypeError(f"{type(self).__name__} does not implement _run_batch")
        return Signature(
            self._run_batch,
            static_args=self.options.static_args,
            kinds=self.kinds,
            group_by=self.group_by,
            pad=self.pad,
        )


class SimpleRunner(_Recipe, ItemHandle):
    """A model that takes one call at a time: same queue, deadlines and errors, no batching.

    Subclass it and implement ``_run``; only `run` and `async_run` are there. An Exception
    that ``_run`` returns is raised to the caller, as it is.

    >>> class Shout(SimpleRunner):
    ...     def _run(self, text, times=1):
    ...         return text.upper() * times
    >>> with Shout() as shout:
    ...     shout.run("hey", times=2)
    'HEYHEY'
    """

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one call. May be ``async def``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _run")

    def _hook(self) -> Callable[..., Any]:
        return self._run

    def _signature(self) -> None:
        if type(self)._run is SimpleRunner._run:
            raise TypeError(f"{type(self).__name__} does not implement _run")
        if "deadline_ms" in inspect.signature(self._run).parameters:
            raise TypeError("_run must not name an argument deadline_ms: every call takes it already")


def _rebuild(cls: Any, name: str, options: BatchOptions, recipe: dict[str, Any]) -> Any:
    runner = cls.__new__(cls)
    runner._local = _Local(name, options)
    runner.__dict__.update(recipe)
    return runner


def _identifier(name: str) -> str:
    """The name with everything that an identifier cannot have replaced by ``_``."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"a runner's name must be a string that is not empty, got {name!r}")
    word = re.sub(r"\W", "_", name)
    return word if word.isidentifier() else f"_{word}"


def _checked(options: BatchOptions) -> BatchOptions:
    if not isinstance(options, BatchOptions):
        raise TypeError(f"options must be BatchOptions, got {options!r}")
    return options


def _after_fork_in_child() -> None:
    """Another thread may have held a lock, and is not here to give it back."""
    for local in list(_locals):
        local.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
