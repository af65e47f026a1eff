"""Results of a batch: checked, cut into the callers' parts, rejoined and lowered to answers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from batching._native.blobs import holds_instance
from batching._native.rows import is_sole_reference
from batching.errors import InvalidPayload, RunnerError
from batching.payloads import Fixed, InvalidResult, Kind, Piece, Registry, Var, pickling

__all__ = ["Results", "encode_output"]


class Results:
    """Cuts and rejoins what `_run_batch` returned, by the kinds of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def check(self, result: Any, rows: int) -> list[tuple[Kind, Any]]:
        """The outputs of a result with their kinds. Raises InvalidResult."""
        if not isinstance(result, tuple):
            return [self._check_output(result, rows, "")]
        if not result:
            raise InvalidResult("_run_batch returned an empty tuple: a tuple stands for several outputs")
        width = len(result)
        return [
            self._check_output(output, rows, f"output {at} of {width}: ") for at, output in enumerate(result)
        ]

    def _check_output(self, output: Any, rows: int, where: str) -> tuple[Kind, Any]:
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

    def split(self, box: list[Any], rows: Sequence[int]) -> list[Any]:
        """The only element of ``box``, which is taken out, as parts of ``rows`` rows each.

        Raises:
            InvalidResult: wrong type, row count or order.
        """
        owned = is_sole_reference(box)
        result = box.pop()
        several = isinstance(result, tuple)
        checked = self.check(result, sum(rows))
        kinds = [kind for kind, _ in checked]
        outputs = [output for _, output in checked]
        # From here on only `outputs` refers to what is nobody else's.
        del result, checked
        owned_each = [owned and is_sole_reference(outputs, at) for at in range(len(outputs))]
        columns = [self._cut(*each, rows) for each in zip(kinds, outputs, owned_each, strict=True)]
        return list(zip(*columns, strict=True)) if several else columns[0]

    def _cut(self, kind: Kind, output: Any, owned: bool, rows: Sequence[int]) -> list[Any]:
        if type(output) is list:
            output = _unshared_exceptions(output)
        return kind.cut(output, rows, owned=owned)

    # --- answers -----------------------------------------------------------------------------

    def finish(self, parts: Sequence[Any], *, single: bool, index: Any) -> Any:
        """The answer to a call: its parts in row order, rejoined, labelled, lowered if ``single``.

        Raises:
            InvalidResult: the parts differ in kind, dtype or columns.
            Exception: the first that stands in a row of a list.
        """
        whole = parts[0] if len(parts) == 1 else self._rejoin(parts)
        if isinstance(whole, tuple):
            return tuple([self._finish_output(output, single, index) for output in whole])
        return self._finish_output(whole, single, index)

    def _finish_output(self, output: Any, single: bool, index: Any) -> Any:
        if type(output) is list and holds_instance(output, Exception):
            raise next(element for element in output if isinstance(element, Exception))
        kind = self._kind(output)
        output = kind.relabel(output, index)
        return kind.lower(output) if single else output

    def _rejoin(self, parts: Sequence[Any]) -> Any:
        if not any(isinstance(part, tuple) for part in parts):
            return self._rejoin_output(parts)
        widths = [len(part) if isinstance(part, tuple) else 0 for part in parts]
        for width in widths:
            if width != widths[0]:
                raise InvalidResult(
                    f"the parts of one call differ: {_outputs(widths[0])} and {_outputs(width)}"
                )
        return tuple([self._rejoin_output(outputs) for outputs in zip(*parts, strict=True)])

    def _rejoin_output(self, parts: Sequence[Any]) -> Any:
        first = parts[0]
        kind = self._kind(first)
        key = kind.key(first)
        for part in parts:
            other = self._kind(part)
            if other is not kind or other.key(part) != key:
                raise InvalidResult(
                    f"the parts of one call differ: {kind.describe(first)} and {other.describe(part)}"
                )
        return kind.join(key, [Piece(part, 0, kind.rows(part)) for part in parts])

    def _kind(self, output: Any) -> Kind:
        kind = self._registry.find(type(output))
        assert kind is not None, "a part is of a kind: split saw to it"
        return kind


def _outputs(width: int) -> str:
    return f"{width} outputs" if width else "one output"


def _unshared_exceptions(output: list[Any]) -> list[Any]:
    """The list with an instance of its own in every row where one exception stands in several:
    a traceback or note that one caller adds must not be seen by another."""
    if not holds_instance(output, Exception):
        return output
    seen: set[int] = set()
    for row, element in enumerate(output):
        if not isinstance(element, Exception):
            continue
        if id(element) in seen:
            output = [*output[:row], _copied(element), *output[row + 1 :]]
        seen.add(id(element))
    return output


def encode_output(kind: Kind, key: Any, output: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
    """The buffers of one output. What stands in a row of a list and cannot travel is an error there.

    Raises:
        InvalidResult: something else than a list cannot travel.
    """
    if type(output) is list:
        output = _with_portable_errors(output, allow_pickle=allow_pickle)
    try:
        return kind.encode(key, output, allow_pickle=allow_pickle)
    except InvalidPayload as error:
        if type(output) is not list:
            raise _cannot_travel(error) from None
    rows: list[Any] = []
    for element in output:
        try:
            kind.encode(key, [element], allow_pickle=allow_pickle)
        except InvalidPayload as error:
            element = _cannot_travel(error)
        rows.append(element)
    return kind.encode(key, rows, allow_pickle=allow_pickle)


def _cannot_travel(error: InvalidPayload) -> InvalidResult:
    return InvalidResult(f"_run_batch returned what cannot travel: {error}")


def _with_portable_errors(output: list[Any], *, allow_pickle: bool) -> list[Any]:
    """The list with a RunnerError in every row where an exception stands that would not arrive:
    one that cannot be pickled, or cannot be made again of its pickle."""
    if not holds_instance(output, Exception):
        return output
    return [
        _portable_error(element, allow_pickle) if isinstance(element, Exception) else element
        for element in output
    ]


def _portable_error(error: Exception, allow_pickle: bool) -> Exception:
    if allow_pickle:
        try:
            twin = pickling.loads(pickling.dumps(error))
        except InvalidPayload:
            pass
        else:
            if type(twin) is type(error):
                return error
    return RunnerError.from_exception("_run_batch", error)


def _copied(error: Exception) -> Exception:
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    return twin if type(twin) is type(error) else error
