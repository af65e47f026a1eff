"""How the arguments of a call are bound to `_run_batch`: which are batched, static, padded.

A call's binding depends only on how many arguments it has and what the others are called,
so it is worked out once per such shape, as a `Plan`, and then looked up.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from batching.errors import InvalidPayload
from batching.payloads.canonical import dumps, freeze, thaw
from batching.payloads.padding import Pad, Padded, RaggedKind

__all__ = ["Binding", "Plan", "Slot"]

_CACHE_ENTRIES = 1024
_RESERVED = "deadline_ms"

_Parameter = inspect.Parameter
_POSITIONAL = (_Parameter.POSITIONAL_ONLY, _Parameter.POSITIONAL_OR_KEYWORD)
_ANY_NUMBER = (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD)


class Slot(NamedTuple):
    """One argument of a call shape. ``source`` is where the call has it: a position, a
    keyword, or, for a default, a list of the one value."""

    name: str
    source: int | str | list[Any]
    keyword: bool
    static: bool


class Plan(NamedTuple):
    """The slots of one call shape, in the order in which `_run_batch` names them.

    ``names`` is their part of the key. ``error`` says what is wrong with the shape, if anything.
    """

    slots: tuple[Slot, ...]
    names: tuple[tuple[str, int, int], ...]
    error: str = ""


class Binding:
    """The parameters of one `_run_batch`.

    Attributes:
        ragged: the kind of each argument that is padded, by name.
        special: some argument is padded, or not batched at all.
    """

    def __init__(
        self,
        signature: inspect.Signature,
        static_args: Sequence[str],
        pad: Pad | Mapping[str, Pad] | None,
    ) -> None:
        self._complete = signature
        self._takes_any = any(p.kind is _Parameter.VAR_KEYWORD for p in signature.parameters.values())
        self._static_args = tuple(static_args)
        self._plans: dict[tuple[int, tuple[str, ...]], Plan] = {}
        self.ragged = {name: RaggedKind(one) for name, one in self._pads(pad).items()}
        lengths = {kind.pad.lengths for kind in self.ragged.values()}
        self.special = bool(self.ragged or static_args)
        # What callers bind to: the lengths of padded items are not theirs to give.
        self._signature = signature.replace(
            parameters=[p for name, p in signature.parameters.items() if name not in lengths]
        )
        self._check_names(lengths)

    def _pads(self, pad: Pad | Mapping[str, Pad] | None) -> Mapping[str, Pad]:
        if isinstance(pad, Pad):
            batched = [name for name in self._complete.parameters if name not in self._static_args]
            return {batched[0]: pad} if batched else {}
        for name, one in (pad or {}).items():
            if not isinstance(one, Pad):
                raise TypeError(f"pad must be a Pad or a dict of them, got {one!r} for {name!r}")
        return pad or {}

    def _check_names(self, lengths: set[str | None]) -> None:
        if _RESERVED in self._complete.parameters:
            raise TypeError(f"_run_batch must not name an argument {_RESERVED}: every call takes it already")
        for name in self._static_args:
            self._check_name("static_args", name)
        for name in self.ragged:
            self._check_name("pad", name)
        for name in (name for name in lengths if name is not None):
            self._check_name("pad", name)
            parameter = self._complete.parameters.get(name)
            if parameter is not None and parameter.kind is _Parameter.POSITIONAL_ONLY:
                raise TypeError(
                    f"pad gives {name!r} by keyword, which _run_batch{self._complete} does not take"
                )
        both = (self.ragged.keys() | lengths) & set(self._static_args)
        if both:
            raise TypeError(f"pad and static_args both name {sorted(map(str, both))}")

    def _check_name(self, option: str, name: str) -> None:
        parameter = self._complete.parameters.get(name)
        if parameter is None and not self._takes_any:
            raise TypeError(f"{option} names {name!r}, which _run_batch{self._complete} does not take")
        if parameter is not None and parameter.kind in _ANY_NUMBER:
            raise TypeError(f"{option} names {name!r}, which stands for any number of arguments")

    # --- calls -------------------------------------------------------------------------------

    def plan(self, positional: int, keywords: tuple[str, ...]) -> Plan:
        """The plan of calls of this shape."""
        plan = self._plans.get((positional, keywords))
        if plan is None:
            plan = self._make_plan(positional, keywords)
            # Bounded: with **kwargs a program may use names without end.
            if len(self._plans) >= _CACHE_ENTRIES:
                self._plans.clear()
            self._plans[positional, keywords] = plan
        return plan

    def _make_plan(self, positional: int, keywords: tuple[str, ...]) -> Plan:
        try:
            bound = self._signature.bind(*range(positional), **{name: name for name in keywords})
        except TypeError as error:
            return Plan((), (), f"_run_batch{self._signature}: {error}")
        slots: list[Slot] = []
        gap = False
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is _Parameter.VAR_POSITIONAL:
                sources = bound.arguments.get(name, ())
                slots += [Slot(f"{name}[{source}]", source, False, False) for source in sources]
            elif parameter.kind is _Parameter.VAR_KEYWORD:
                # Sorted: the order of a caller's keywords is no difference between calls.
                extras = sorted(bound.arguments.get(name, {}))
                slots += [Slot(extra, extra, True, extra in self._static_args) for extra in extras]
            else:
                static = name in self._static_args
                keyword = gap or parameter.kind not in _POSITIONAL
                if name in bound.arguments:
                    slots.append(Slot(name, bound.arguments[name], keyword, static))
                elif static and parameter.default is not _Parameter.empty:
                    slots.append(Slot(name, [parameter.default], keyword, static))
                else:
                    gap = True
        if all(slot.static for slot in slots):
            rule = "a call needs at least one batched argument"
            return Plan((), (), f"{rule} of _run_batch{self._signature}, got none")
        return Plan(tuple(slots), tuple((slot.name, int(slot.keyword), int(slot.static)) for slot in slots))

    def arguments(
        self, slots: Sequence[Slot], values: Sequence[Any], statics: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `_run_batch` is called with, from its batched and static values in slot order."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        batched = iter(values)
        static = iter(statics)
        for slot in slots:
            value = next(static if slot.static else batched)
            if type(value) is Padded:
                wanted = self.ragged[slot.name].pad.lengths
                if wanted is not None:
                    kwargs[wanted] = value.lengths
                value = value.array
            if slot.keyword:
                kwargs[slot.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    # --- the other process -------------------------------------------------------------------

    def describe(self) -> Hashable:
        """All of this as nested tuples of text. See `from_description`."""
        parameters = tuple(
            (name, int(p.kind), self._frozen_default(p)) for name, p in self._complete.parameters.items()
        )
        pads = tuple((name, freeze(kind.pad.value), kind.pad.lengths) for name, kind in self.ragged.items())
        return parameters, self._static_args, pads

    @classmethod
    def from_description(cls, description: Any, *, allow_pickle: bool) -> Binding:
        """The binding again. Raises InvalidPayload."""
        try:
            parameters, static_args, pads = description
            signature = inspect.Signature(
                [
                    _Parameter(name, inspect._ParameterKind(kind), default=_default(frozen, allow_pickle))
                    for name, kind, frozen in parameters
                ]
            )
            pad = {
                name: Pad(thaw(value, allow_pickle=allow_pickle), lengths) for name, value, lengths in pads
            }
            return cls(signature, static_args, pad)
        except InvalidPayload:
            raise
        except Exception as error:
            raise InvalidPayload(f"not a description of arguments: {str(description)[:80]}") from error

    def _frozen_default(self, parameter: inspect.Parameter) -> Hashable:
        """A static argument's default itself; of a batched one only that there is one. A default
        that cannot leave this process makes its argument a required one in others."""
        if parameter.default is _Parameter.empty:
            return None
        frozen = freeze(parameter.default if parameter.name in self._static_args else None)
        try:
            dumps(frozen)
        except InvalidPayload:
            return None
        return frozen


def _default(frozen: Any, allow_pickle: bool) -> Any:
    return _Parameter.empty if frozen is None else thaw(frozen, allow_pickle=allow_pickle)
