"""`Signature`: the calls of one `_run_batch`: bound, keyed, joined, cut and rejoined.

What it is      the one place that knows how a call's arguments become rows of a batch, and
                how a batch's result becomes each caller's answer. Every engine uses it: the
                embedded one by `describe`, `join`, `split`, `finish`; a service puts
                `encode`, `decode`, `encode_result` and `decode_result` in between.
Guarantees      1. only calls with equal keys are joined, and equal keys can always be joined;
                2. a batch has one value of every static argument; 3. the model gets memory of
                its own, and so does every caller; 4. a result is cut by its row count, or
                refused for every caller; never a `zip`.
Not promised    that a call whose payload changes before its answer is answered for the old one.
Why this shape  a call's binding depends only on how many arguments it has and what the others
                are called, so it is worked out once per such shape and then looked up.
Threads         every method may be called from any thread at any time.
"""

from __future__ import annotations

import copy
import inspect
import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from batching.errors import InvalidPayload, RunnerError
from batching.payloads import Encoded, Fixed, InvalidResult, Kind, Piece, Registry, Var
from batching.payloads.canonical import dumps, freeze, loads, thaw

__all__ = ["Described", "Encoded", "InvalidResult", "Payload", "Signature"]

_CACHE_ENTRIES = 1024
_RESERVED = "deadline_ms"
# What `sys.getrefcount` says of an object that one local variable refers to.
_SOLE_REFERENCE = 2

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Payload:
    """One call's arguments in the form of a batch. Made by `Signature.describe`.

    Attributes:
        key: equal for exactly those payloads that may share a batch.
        rows: rows of every batched argument.
        single: whether the call was `run`: one item, one row back.
        index: the caller's labels of the rows, or None.
    """

    __slots__ = ("batches", "index", "key", "plan", "rows", "single", "statics")

    def __init__(
        self,
        plan: _Plan,
        key: Hashable,
        batches: list[tuple[Kind, Any]],
        statics: list[Any],
        rows: int,
        single: bool,
        index: Any,
    ) -> None:
        self.plan = plan
        self.key = key
        self.batches = batches
        self.statics = statics
        self.rows = rows
        self.single = single
        self.index = index


class Described(NamedTuple):
    """A call as an engine queues it: how many rows, and which calls it can be joined with."""

    rows: int
    key: Hashable
    payload: Payload


class _Slot(NamedTuple):
    """One argument of a call shape. ``source`` is where the call has it: a position, a
    keyword, or, for a default, a list of the one value."""

    name: str
    source: int | str | list[Any]
    keyword: bool
    static: bool


class _Plan(NamedTuple):
    """The slots of one call shape, in the order in which `_run_batch` names them.

    ``names`` is their part of the key: keyword or None, and whether static.
    """

    slots: tuple[_Slot, ...]
    names: tuple[tuple[str | None, bool], ...]
    error: str = ""


class Signature:
    """The signature of one runner's `_run_batch`.

    Args:
        run_batch: a bound method or function; never called here.
        static_args: names of arguments that are not batched.
        kinds: payload kinds beside ndarray, DataFrame, Series and list.
        group_by: from one item of the first batched argument to a hashable: only items of
            equal buckets share a batch.

    Raises:
        TypeError, ValueError: the signature and the names contradict each other.

    Attributes:
        simple: one positional ndarray can be batched without any look at this object.
    """

    def __init__(
        self,
        run_batch: Callable[..., Any],
        *,
        static_args: Sequence[str] = (),
        kinds: Sequence[Kind] = (),
        group_by: Callable[[Any], Hashable] | None = None,
        pad: Any = None,
    ) -> None:
        self._signature = inspect.signature(run_batch)
        self._static_args = tuple(static_args)
        self._kinds = tuple(kinds)
        self._registry = Registry(self._kinds)
        self._group_by = group_by
        self._plans: dict[tuple[int, tuple[str, ...]], _Plan] = {}
        self._keys: dict[Hashable, bytes] = {}
        self._parsed: dict[bytes, Any] = {}
        self._check_names()
        self.simple = (
            not static_args and not kinds and group_by is None and pad is None and not self._plan(1, ()).error
        )

    def _check_names(self) -> None:
        parameters = self._signature.parameters
        if _RESERVED in parameters:
            raise TypeError(f"_run_batch must not name an argument {_RESERVED}: every call takes it already")
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for name in self._static_args:
            parameter = parameters.get(name)
            if parameter is None and not takes_any:
                raise TypeError(
                    f"static_args names {name!r}, which _run_batch{self._signature} does not take"
                )
            if parameter is not None and parameter.kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                raise TypeError(f"static_args names {name!r}, which stands for any number of arguments")

    # --- the other process -------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """What a process without the runner's class needs to make calls. See `from_bytes`."""
        parameters = tuple(
            (name, int(p.kind), self._frozen_default(p)) for name, p in self._signature.parameters.items()
        )
        kinds = tuple(freeze(kind) for kind in self._kinds)
        return dumps((parameters, self._static_args, kinds))

    @classmethod
    def from_bytes(cls, data: bytes, *, allow_pickle: bool = True) -> Signature:
        """The signature that `to_bytes` described, without its `group_by`. Raises InvalidPayload."""
        match loads(data):
            case (tuple(parameters), tuple(static_args), tuple(kinds)):
                pass
            case _:
                raise InvalidPayload(f"not a signature: {bytes(data[:80])!r}")
        try:
            signature = inspect.Signature(
                [
                    inspect.Parameter(
                        name, inspect._ParameterKind(kind), default=_default(frozen, allow_pickle)
                    )
                    for name, kind, frozen in parameters
                ]
            )
            own = [thaw(kind, allow_pickle=allow_pickle) for kind in kinds]
            return cls(_Described(signature), static_args=static_args, kinds=own)
        except InvalidPayload:
            raise
        except Exception as error:
            raise InvalidPayload(f"not a signature: {bytes(data[:80])!r}") from error

    def _frozen_default(self, parameter: inspect.Parameter) -> Hashable:
        """A static argument's default itself; of a batched one only that there is one."""
        if parameter.default is inspect.Parameter.empty:
            return None
        return freeze(parameter.default if parameter.name in self._static_args else None)

    # --- a call ------------------------------------------------------------------------------

    def describe(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], batched: bool) -> Described:
        """Bind a call, turn its arguments into batches and key it.

        Args:
            batched: whether the call is `run_batch`: arguments have rows. Else it is `run`:
                they are one item each.

        Raises:
            InvalidPayload: naming the rule and the values.
            RunnerError: the runner's `group_by` raised.
        """
        plan = self._plan(len(args), tuple(kwargs))
        if plan.error:
            raise InvalidPayload(plan.error)
        batches: list[tuple[Kind, Any]] = []
        statics: list[Any] = []
        key: list[Hashable] = []
        rows = -1
        index: Any = None
        items: Any = None
        for slot in plan.slots:
            source = slot.source
            if type(source) is int:
                value = args[source]
            elif type(source) is str:
                value = kwargs[source]
            else:
                value = source[0]  # type: ignore[index]
            if slot.static:
                statics.append(value)
                key.append(freeze(value))
                continue
            kind, batch = self._batch(slot, value, batched)
            count = kind.rows(batch)
            if rows < 0:
                rows = count
                items = value if not batched else (kind, batch)
            elif count != rows:
                first = next(other.name for other in plan.slots if not other.static)
                raise InvalidPayload(
                    f"all batched arguments of a call have the same number of rows: "
                    f"{first!r} has {rows}, {slot.name!r} has {count}"
                )
            if index is None:
                index = kind.index(batch)
            batches.append((kind, batch))
            key.append((kind.name, kind.key(batch)))
        bucket = None if self._group_by is None else self._bucket(items, batched, rows)
        whole = (plan.names, tuple(key), bucket)
        return Described(rows, whole, Payload(plan, whole, batches, statics, rows, not batched, index))

    def _batch(self, slot: _Slot, value: Any, batched: bool) -> tuple[Kind, Any]:
        try:
            if not batched:
                kind = self._registry.of_item(type(value))
                batch = kind.lift(value)
                # A Series is lifted to a row of a DataFrame.
                return (self._registry.find(type(batch)) or kind), batch
            found = self._registry.find(type(value))
            if found is not None:
                return found, found.check(value)
        except InvalidPayload as error:
            raise InvalidPayload(f"argument {slot.name!r}: {error}") from None
        advice = "use run for one item"
        if isinstance(value, np.ndarray):
            advice = "np.asarray(x) drops what the subclass adds"
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
            advice = "make it a list"
        raise InvalidPayload(
            f"argument {slot.name!r}: run_batch takes an ndarray, DataFrame, Series or list, "
            f"got {type(value).__name__}: {advice}"
        )

    def _bucket(self, items: Any, batched: bool, rows: int) -> Hashable:
        """The bucket of a call: its items' own, or, where they differ, the set of theirs."""
        group_by = self._group_by
        assert group_by is not None
        try:
            if not batched:
                return freeze(_hashable(group_by(items)))
            kind, batch = items
            buckets = [
                freeze(_hashable(group_by(kind.lower(kind.join(kind.key(batch), [Piece(batch, row, 1)])))))
                for row in range(rows)
            ]
        except Exception as error:
            raise _runner_error("group_by", error) from error
        distinct = set(buckets)
        return distinct.pop() if len(distinct) == 1 else ("several", *sorted(distinct, key=repr))

    def _plan(self, positional: int, keywords: tuple[str, ...]) -> _Plan:
        plan = self._plans.get((positional, keywords))
        if plan is None:
            plan = self._make_plan(positional, keywords)
            if len(self._plans) >= _CACHE_ENTRIES:
                self._plans.clear()
            self._plans[positional, keywords] = plan
        return plan

    def _make_plan(self, positional: int, keywords: tuple[str, ...]) -> _Plan:
        try:
            bound = self._signature.bind(*range(positional), **{name: name for name in keywords})
        except TypeError as error:
            return _Plan((), (), f"_run_batch{self._signature}: {error}")
        slots: list[_Slot] = []
        gap = False
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                for source in bound.arguments.get(name, ()):
                    slots.append(_Slot(f"{name}[{source}]", source, False, False))
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                # Sorted: the order of a caller's keywords is no difference between calls.
                for extra in sorted(bound.arguments.get(name, {})):
                    slots.append(_Slot(extra, extra, True, extra in self._static_args))
            else:
                static = name in self._static_args
                keyword = gap or parameter.kind not in _POSITIONAL
                if name in bound.arguments:
                    slots.append(_Slot(name, bound.arguments[name], keyword, static))
                elif static and parameter.default is not inspect.Parameter.empty:
                    slots.append(_Slot(name, [parameter.default], keyword, static))
                else:
                    gap = True
        if all(slot.static for slot in slots):
            rule = "a call needs at least one batched argument"
            return _Plan((), (), f"{rule} of _run_batch{self._signature}, got none")
        return _Plan(
            tuple(slots), tuple((slot.name if slot.keyword else None, slot.static) for slot in slots)
        )

    # --- a batch -----------------------------------------------------------------------------

    def join(self, pieces: Sequence[tuple[Payload, int, int]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one `_run_batch` call: the pieces' rows, in order.

        Args:
            pieces: payload, first row and rows of each; all of one key. A row may be named
                again, as padding.
        """
        first = pieces[0][0]
        values: list[Any] = []
        for at, (kind, batch) in enumerate(first.batches):
            parts = [Piece(payload.batches[at][1], start, rows) for payload, start, rows in pieces]
            values.append(kind.join(kind.key(batch), parts))
        return _arguments(first.plan.slots, values, first.statics)

    def split(self, result: Any, rows: Sequence[int]) -> list[Any]:
        """The result of a batch as one part for each piece, in memory of its own.

        Args:
            result: what `_run_batch` returned.
            rows: rows of each piece, as they were joined.

        Raises:
            InvalidResult: wrong type, row count or order; it holds for every caller.
        """
        return self._split(result, rows, owned=False)

    def split_owned(self, box: list[Any], rows: Sequence[int]) -> list[Any]:
        """`split` of the only element of ``box``, which is taken out.

        If nothing else refers to the result then, large rows are views of it, not copies.
        """
        result = box.pop()
        owned = sys.getrefcount(result) <= _SOLE_REFERENCE
        return self._split(result, rows, owned=owned)

    def _split(self, result: Any, rows: Sequence[int], *, owned: bool) -> list[Any]:
        total = sum(rows)
        if not isinstance(result, tuple):
            return self._split_output(result, rows, total, "", owned)
        _check_outputs(result)
        outputs = [
            self._split_output(output, rows, total, f"output {at} of {len(result)}: ", False)
            for at, output in enumerate(result)
        ]
        return list(zip(*outputs, strict=True)) if rows else []

    def _split_output(
        self, output: Any, rows: Sequence[int], total: int, where: str, owned: bool
    ) -> list[Any]:
        kind, output = self._result(output, total, where)
        if type(output) is list:
            output = _unshared_exceptions(output)
        return kind.cut(output, rows, owned=owned)

    def _result(self, output: Any, rows: int, where: str) -> tuple[Kind, Any]:
        """The kind of a result, once its type, row count and order are found right."""
        try:
            kind = self._registry.find(type(output))
            if kind is not None:
                output = kind.check(output)
        except InvalidPayload as error:
            raise InvalidResult(f"_run_batch was given {rows} rows and returned {where}{error}") from None
        if kind is None:
            raise InvalidResult(
                "_run_batch must return an ndarray, DataFrame, Series, list or a tuple of those, "
                f"of {rows} rows; got {where}{type(output).__name__}"
            )
        count = kind.rows(output)
        if count != rows:
            raise InvalidResult(
                f"_run_batch was given {rows} rows and returned {count}: {where}{kind.describe(output)}"
            )
        return kind, kind.settle(output, rows)

    # --- an answer ---------------------------------------------------------------------------

    def finish(self, payload: Payload, parts: Sequence[Any]) -> Any:
        """The caller's answer: its parts in row order, rejoined, labelled, lowered to one item.

        Raises:
            InvalidResult: the parts of a call that was cut differ in kind, dtype or columns.
            Exception: the first that stands in a row of a list.
        """
        whole = parts[0] if len(parts) == 1 else self._rejoin(parts)
        if isinstance(whole, tuple):
            return tuple([self._finish_output(payload, output) for output in whole])
        return self._finish_output(payload, whole)

    def _finish_output(self, payload: Payload, output: Any) -> Any:
        kind = self._registry.find(type(output))
        assert kind is not None
        if type(output) is list:
            for element in output:
                if isinstance(element, Exception):
                    raise element
        output = kind.relabel(output, payload.index)
        return kind.lower(output) if payload.single else output

    def _rejoin(self, parts: Sequence[Any]) -> Any:
        if not isinstance(parts[0], tuple) and not any(isinstance(part, tuple) for part in parts):
            return self._rejoin_output(parts)
        widths = {len(part) if isinstance(part, tuple) else 1 for part in parts}
        if len(widths) > 1 or not all(isinstance(part, tuple) for part in parts):
            raise InvalidResult(f"the parts of one call have different numbers of outputs: {sorted(widths)}")
        return tuple([self._rejoin_output(outputs) for outputs in zip(*parts, strict=True)])

    def _rejoin_output(self, parts: Sequence[Any]) -> Any:
        kinds = [self._registry.find(type(part)) for part in parts]
        kind = kinds[0]
        assert kind is not None
        key = kind.key(parts[0])
        for part, other in zip(parts, kinds, strict=True):
            assert other is not None
            if other is not kind or other.key(part) != key:
                raise InvalidResult(
                    f"the parts of one call differ: {kind.describe(parts[0])} and {other.describe(part)}"
                )
        return kind.join(key, [Piece(part, 0, kind.rows(part)) for part in parts])

    # --- the wire ----------------------------------------------------------------------------

    def encode(self, payload: Payload, *, allow_pickle: bool = True) -> Encoded:
        """A call as key and buffers.

        Raises:
            InvalidPayload: something cannot be pickled, or must be and may not.
        """
        key = self._keys.get(payload.key)
        if key is None:
            key = dumps(payload.key)
            if len(self._keys) >= _CACHE_ENTRIES:
                self._keys.clear()
            self._keys[payload.key] = key
        buffers: list[Fixed | Var] = []
        for kind, batch in payload.batches:
            buffers += kind.encode(kind.key(batch), batch, allow_pickle=allow_pickle)
        return Encoded(key, payload.rows, buffers)

    def decode(
        self, key: bytes, buffers: Sequence[Fixed | Var], rows: int, *, allow_pickle: bool = True
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one `_run_batch` call from joined buffers.

        Raises:
            InvalidPayload: key and buffers do not fit, or pickle is needed and not allowed.
        """
        names, tokens, _ = self._parse(key, 3)
        if len(names) != len(tokens):
            raise InvalidPayload(f"not the key of a call: {key[:80]!r}")
        slots = [_Slot(name or "", 0, name is not None, static) for name, static in names]
        left = iter(buffers)
        values: list[Any] = []
        statics: list[Any] = []
        for slot, token in zip(slots, tokens, strict=True):
            if slot.static:
                statics.append(thaw(token, allow_pickle=allow_pickle))
            else:
                values.append(self._decode_batch(token, left, rows, allow_pickle))
        if next(left, None) is not None:
            raise InvalidPayload("more buffers than the key names")
        return _arguments(slots, values, statics)

    def encode_result(self, result: Any, rows: int, *, allow_pickle: bool = True) -> Encoded:
        """A whole batch's result as key and buffers, whose rows can then be cut by anybody.

        Raises:
            InvalidResult: as `split`; or something in it cannot be pickled.
        """
        several = isinstance(result, tuple)
        if several:
            _check_outputs(result)
        tokens: list[Hashable] = []
        buffers: list[Fixed | Var] = []
        for at, output in enumerate(result if several else (result,)):
            kind, output = self._result(output, rows, f"output {at} of {len(result)}: " if several else "")
            key = kind.key(output)
            tokens.append((kind.name, key))
            try:
                buffers += kind.encode(key, output, allow_pickle=allow_pickle)
            except InvalidPayload as error:
                raise InvalidResult(f"_run_batch, {error}") from None
        return Encoded(dumps((int(several), tuple(tokens))), rows, buffers)

    def decode_result(
        self, key: bytes, buffers: Sequence[Fixed | Var], rows: int, *, allow_pickle: bool = True
    ) -> Any:
        """A part for `finish` from the slices of the buffers that `encode_result` made.

        Raises:
            InvalidPayload: key and buffers do not fit, or pickle is needed and not allowed.
        """
        several, tokens = self._parse(key, 2)
        left = iter(buffers)
        outputs = [self._decode_batch(token, left, rows, allow_pickle) for token in tokens]
        if next(left, None) is not None:
            raise InvalidPayload("more buffers than the key names")
        return tuple(outputs) if several else outputs[0]

    def _decode_batch(self, token: Any, buffers: Iterator[Fixed | Var], rows: int, allow_pickle: bool) -> Any:
        match token:
            case (name, key):
                return self._registry.of_name(name).decode(key, buffers, rows, allow_pickle=allow_pickle)
        raise InvalidPayload(f"not the key of an argument: {str(token)[:80]}")

    def _parse(self, key: bytes, fields: int) -> Any:
        parsed = self._parsed.get(key)
        if parsed is None:
            parsed = loads(key)
            if len(self._parsed) >= _CACHE_ENTRIES:
                self._parsed.clear()
            self._parsed[bytes(key)] = parsed
        if not isinstance(parsed, tuple) or len(parsed) != fields:
            raise InvalidPayload(f"not a key: {bytes(key[:80])!r}")
        return parsed


class _Described:
    """Stands for a `_run_batch` of which only the signature is known."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.__signature__ = signature

    def __call__(self) -> None:
        raise NotImplementedError


def _default(frozen: Any, allow_pickle: bool) -> Any:
    return inspect.Parameter.empty if frozen is None else thaw(frozen, allow_pickle=allow_pickle)


def _arguments(
    slots: Sequence[_Slot], values: Sequence[Any], statics: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    batched = iter(values)
    static = iter(statics)
    for slot in slots:
        value = next(static if slot.static else batched)
        if slot.keyword:
            kwargs[slot.name] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def _check_outputs(result: tuple[Any, ...]) -> None:
    if not result:
        raise InvalidResult("_run_batch returned an empty tuple: a tuple stands for several outputs")


def _unshared_exceptions(output: list[Any]) -> list[Any]:
    """The list with an instance of its own in every row where one exception stands in several:
    a traceback or note that one caller adds must not be seen by another."""
    seen: set[int] = set()
    for row, element in enumerate(output):
        if not isinstance(element, Exception):
            continue
        if id(element) in seen:
            output = list(output)
            output[row] = _copied(element)
        seen.add(id(element))
    return output


def _copied(error: Exception) -> Exception:
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    return twin if type(twin) is type(error) else error


def _hashable(bucket: Any) -> Any:
    hash(bucket)
    return bucket


def _runner_error(hook: str, error: Exception) -> RunnerError:
    name = type(error).__name__
    text = "".join(traceback.format_exception(error))
    return RunnerError(f"{hook} raised {name}: {error}", name, str(error), text)
