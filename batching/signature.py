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
Threads         every method may be called from any thread at any time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from batching.binding import Binding, Plan, Slot
from batching.errors import InvalidPayload, RunnerError
from batching.keys import Keys
from batching.payloads import Encoded, Fixed, InvalidResult, Kind, Piece, Registry, Var
from batching.payloads.canonical import dumps, freeze, loads, thaw
from batching.payloads.padding import Pad
from batching.results import Results, encode_output

__all__ = ["Described", "Encoded", "InvalidResult", "Payload", "Signature"]


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
        plan: Plan,
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


class _CallKey(NamedTuple):
    """The key of a call, read: every batched argument's kind and what its `decode` gets."""

    slots: list[Slot]
    arguments: list[tuple[Kind, Any]]
    statics: list[Any]
    bucket: Any


class Signature:
    """The signature of one runner's `_run_batch`.

    Args:
        run_batch: a bound method or function; never called here.
        static_args: names of arguments that are not batched.
        kinds: payload kinds beside ndarray, DataFrame, Series and list.
        group_by: from one item of the first batched argument to a hashable: only items of
            equal buckets share a batch.
        pad: a `Pad` for the first batched argument, or one for each of several by name.

    Raises:
        TypeError, ValueError: the signature and the names contradict each other.

    Attributes:
        simple: one positional ndarray can be batched without any look at this object.
        grouped: calls have a bucket; those that come without one need `regroup`.
    """

    def __init__(
        self,
        run_batch: Callable[..., Any],
        *,
        static_args: Sequence[str] = (),
        kinds: Sequence[Kind] = (),
        group_by: Callable[[Any], Hashable] | None = None,
        pad: Pad | Mapping[str, Pad] | None = None,
    ) -> None:
        self._fill(Binding(inspect.signature(run_batch), static_args, pad), kinds, group_by)

    def _fill(
        self, binding: Binding, kinds: Sequence[Kind], group_by: Callable[[Any], Hashable] | None
    ) -> None:
        self._binding = binding
        self._plan = binding.plan
        self._kinds = tuple(kinds)
        self._registry = Registry(self._kinds)
        self._results = Results(self._registry)
        self._group_by = group_by
        self.grouped = group_by is not None
        self.simple = not (kinds or self.grouped or binding.special or self._plan(1, ()).error)
        self._keys = Keys()

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
        tokens: list[Hashable] = []
        rows = -1
        index: Any = None
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
                tokens.append(freeze(value))
                continue
            kind, batch = self._batch(slot, value, batched)
            count = kind.rows(batch)
            if rows < 0:
                rows = count
            elif count != rows:
                first = next(other.name for other in plan.slots if not other.static)
                raise InvalidPayload(
                    "all batched arguments of a call have the same number of rows: "
                    f"{first!r} has {rows}, {slot.name!r} has {count}"
                )
            if index is None:
                index = kind.index(batch)
            batches.append((kind, batch))
            tokens.append((kind.name, kind.key(batch)))
        bucket = None if self._group_by is None else self._bucket(*batches[0], rows)
        key = (plan.names, tuple(tokens), bucket)
        return Described(rows, key, Payload(plan, key, batches, statics, rows, not batched, index))

    def _batch(self, slot: Slot, value: Any, batched: bool) -> tuple[Kind, Any]:
        try:
            ragged = self._binding.ragged.get(slot.name)
            if ragged is not None:
                return ragged, ragged.check(value) if batched else ragged.lift(value)
            if not batched:
                kind = self._registry.of_item(type(value))
                batch = kind.lift(value)
                if type(batch) not in kind.types:
                    # A Series is lifted to a row of a DataFrame.
                    kind = self._registry.find(type(batch)) or kind
                return kind, batch
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

    def _bucket(self, kind: Kind, batch: Any, rows: int) -> Hashable:
        """The bucket of a call: its items' own, or, where they differ, the set of theirs."""
        assert self._group_by is not None
        try:
            buckets = {freeze(_hashable(self._group_by(kind.item(batch, row)))) for row in range(rows)}
        except Exception as error:
            raise RunnerError.from_exception("group_by", error) from error
        return buckets.pop() if len(buckets) == 1 else ("several", *sorted(buckets, key=repr))

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
        return self._binding.arguments(first.plan.slots, values, first.statics)

    def split(self, result: Any, rows: Sequence[int]) -> list[Any]:
        """The result of a batch as one part for each piece, in memory of its own.

        Args:
            result: what `_run_batch` returned.
            rows: rows of each piece, as they were joined.

        Raises:
            InvalidResult: wrong type, row count or order; it holds for every caller.
        """
        return self._results.split([result], rows)

    def split_owned(self, box: list[Any], rows: Sequence[int]) -> list[Any]:
        """`split` of the only element of ``box``, which is taken out.

        If nothing else refers to the result then, large rows are views of it, not copies.
        """
        return self._results.split(box, rows)

    def finish(self, payload: Payload, parts: Sequence[Any]) -> Any:
        """The caller's answer: its parts in row order, rejoined, labelled, lowered to one item.

        Raises:
            InvalidResult: the parts of a call that was cut differ in kind, dtype or columns.
            Exception: the first that stands in a row of a list.
        """
        return self._results.finish(parts, single=payload.single, index=payload.index)

    # --- the wire ----------------------------------------------------------------------------

    def encode(self, payload: Payload, *, allow_pickle: bool = True) -> Encoded:
        """A call as key and buffers.

        Raises:
            InvalidPayload: something cannot be pickled, or must be and may not.
        """
        key = self._keys.dumps(payload.key)
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
        slots, batches, statics = self._decode_call(key, buffers, rows, allow_pickle)
        values = [kind.settled(batch) for kind, batch in batches]
        return self._binding.arguments(slots, values, statics)

    def regroup(
        self, key: bytes, buffers: Sequence[Fixed | Var], rows: int, *, allow_pickle: bool = True
    ) -> bytes:
        """The key of a call with its bucket, where the caller could not say it.

        Raises:
            InvalidPayload: key and buffers do not fit, or pickle is needed and not allowed.
            RunnerError: the runner's `group_by` raised.
        """
        if (
            self._group_by is None
            or self._keys.read(key, allow_pickle, self._read_call_key).bucket is not None
        ):
            return key
        names, tokens, _ = loads(key)
        try:
            _, batches, _ = self._decode_call(key, buffers, rows, allow_pickle)
            return dumps((names, tokens, self._bucket(*batches[0], rows)))
        except Exception:
            raise
        except BaseException as error:
            # Not the caller's own thread, which might want to end.
            raise RunnerError.from_exception("group_by", error) from error

    def _decode_call(
        self, key: bytes, buffers: Sequence[Fixed | Var], rows: int, allow_pickle: bool
    ) -> tuple[list[Slot], list[tuple[Kind, Any]], list[Any]]:
        parsed = self._keys.read(key, allow_pickle, self._read_call_key)
        batches = _decode_all(parsed.arguments, buffers, rows, allow_pickle)
        return parsed.slots, batches, [thaw(token, allow_pickle=allow_pickle) for token in parsed.statics]

    def _read_call_key(self, key: Any, allow_pickle: bool) -> _CallKey:
        names, tokens, bucket = key
        slots = [Slot(str(name), 0, bool(keyword), bool(static)) for name, keyword, static in names]
        arguments: list[tuple[Kind, Any]] = []
        statics: list[Any] = []
        for slot, token in zip(slots, tokens, strict=True):
            if slot.static:
                statics.append(token)
            else:
                arguments.append(self._read_kind(token, allow_pickle, self._binding.ragged.get(slot.name)))
        return _CallKey(slots, arguments, statics, bucket)

    def _read_kind(self, token: Any, allow_pickle: bool, ragged: Kind | None) -> tuple[Kind, Any]:
        name, key = token
        kind = ragged if ragged is not None and name == ragged.name else self._registry.of_name(name)
        return kind, kind.load_key(key, allow_pickle=allow_pickle)

    def encode_result(self, result: Any, rows: int, *, allow_pickle: bool = True) -> Encoded:
        """A whole batch's result as key and buffers, whose rows can then be cut by anybody.

        Raises:
            InvalidResult: as `split`; or something in it cannot be pickled. In a list, that is
                the error of its row alone.
        """
        tokens: list[Hashable] = []
        buffers: list[Fixed | Var] = []
        for kind, output in self._results.check(result, rows):
            key = kind.key(output)
            tokens.append((kind.name, key))
            buffers += encode_output(kind, key, output, allow_pickle=allow_pickle)
        return Encoded(self._keys.dumps((int(isinstance(result, tuple)), tuple(tokens))), rows, buffers)

    def decode_result(
        self, key: bytes, buffers: Sequence[Fixed | Var], rows: int, *, allow_pickle: bool = True
    ) -> Any:
        """A part for `finish` from the slices of the buffers that `encode_result` made.

        Raises:
            InvalidPayload: key and buffers do not fit, or pickle is needed and not allowed.
        """
        several, kinds = self._keys.read(key, allow_pickle, self._read_result_key)
        outputs = [batch for _, batch in _decode_all(kinds, buffers, rows, allow_pickle)]
        return tuple(outputs) if several else outputs[0]

    def _read_result_key(self, key: Any, allow_pickle: bool) -> tuple[bool, list[tuple[Kind, Any]]]:
        several, tokens = key
        kinds = [self._read_kind(token, allow_pickle, None) for token in tokens]
        if not kinds or (len(kinds) > 1 and not several):
            raise ValueError(f"{len(kinds)} outputs")
        return bool(several), kinds

    # --- the other process -------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """What a process without the runner's class needs to make calls. See `from_bytes`."""
        kinds = tuple(freeze(kind) for kind in self._kinds)
        return dumps((self._binding.describe(), kinds, int(self.grouped)))

    @classmethod
    def from_bytes(cls, data: bytes, *, allow_pickle: bool = True) -> Signature:
        """The signature that `to_bytes` described, without its `group_by`: the calls that it
        keys have no bucket yet. Raises InvalidPayload."""
        match loads(data):
            case (binding, tuple(frozen), int(grouped)):
                kinds = [thaw(kind, allow_pickle=allow_pickle) for kind in frozen]
            case _:
                raise InvalidPayload(f"not a signature: {bytes(data[:80])!r}")
        signature = cls.__new__(cls)
        signature._fill(Binding.from_description(binding, allow_pickle=allow_pickle), kinds, None)
        signature.grouped = bool(grouped)
        signature.simple = signature.simple and not signature.grouped
        return signature


def _decode_all(
    kinds: Sequence[tuple[Kind, Any]], buffers: Sequence[Fixed | Var], rows: int, allow_pickle: bool
) -> list[tuple[Kind, Any]]:
    left = iter(buffers)
    try:
        batches = [(kind, kind.decode(key, left, rows, allow_pickle=allow_pickle)) for kind, key in kinds]
    except InvalidPayload:
        raise
    except Exception as error:
        raise InvalidPayload(f"the buffers cannot be read: {type(error).__name__}: {error}") from error
    if next(left, None) is not None:
        raise InvalidPayload("more buffers than the key names")
    return batches


def _hashable(bucket: Any) -> Any:
    hash(bucket)
    return bucket
