"""Values as nested tuples of text that are equal exactly when type and value are.

`freeze` turns a static argument, a column name or a bucket into such a tuple, `thaw` makes
the value again; `dumps` and `loads` carry keys built of them over the wire, as JSON.

Guarantees      1. frozen values of different type differ, also 1, True, 1.0 and numpy's 1;
                2. 0.0 and -0.0 differ, nan equals nan; 3. equal built-in values, nested ones
                too, freeze equal.
Not promised    that two equal objects of other classes freeze equal: their pickles decide. A
                difference costs a separate batch, never a wrong one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from batching.errors import InvalidPayload, InvalidResult, RunnerError

from . import pickling
from .kinds import refuse_pickle

__all__ = ["PLAIN", "dumps", "dumps_plain", "freeze", "loads", "loads_plain", "thaw"]

# First byte of a value in plain form; a pickle's own is 0x80.
PLAIN = 2

_LIMIT_BYTES = 1 << 24


class _Identity:
    """Stands for an object that cannot be pickled: equal to itself alone, and keeps it alive."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def freeze(value: Any) -> Hashable:
    """A hashable that stands for the value, by type and content."""
    frozen = _FREEZE.get(type(value))
    if frozen is not None:
        return frozen(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufcmMSU":
        return "numpy", value.dtype.str, value.tobytes().hex()
    try:
        blob = pickling.dumps(value)
    except InvalidPayload:
        return "identity", _Identity(value)
    return "pickle", base64.b64encode(blob).decode("ascii")


def thaw(frozen: Any, *, allow_pickle: bool = True) -> Any:
    """The value that was frozen. Raises InvalidPayload for what `freeze` never makes."""
    try:
        tag, *content = frozen
        return _THAW[tag](content, allow_pickle)
    except InvalidPayload:
        raise
    except Exception as error:
        raise InvalidPayload(f"not a frozen value: {str(frozen)[:80]}") from error


def dumps(key: Any) -> bytes:
    """A key as canonical bytes. Raises InvalidPayload if it holds what only this process knows."""
    return json.dumps(key, separators=(",", ":"), default=_token).encode("ascii")


def loads(data: Any) -> Any:
    """The key again, lists as tuples. Raises InvalidPayload."""
    if len(data) > _LIMIT_BYTES:
        raise InvalidPayload(f"a key has at most {_LIMIT_BYTES} bytes, got {len(data)}")
    try:
        return _tuples(json.loads(bytes(data)))
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"not a key: {bytes(data[:80])!r}") from error


def dumps_plain(value: Any) -> bytes:
    """A value without pickle: None, numbers, text, bytes and collections of them.

    Raises InvalidPayload naming the type of what has no such form.
    """
    frozen = freeze(value)
    try:
        thaw(frozen, allow_pickle=False)
    except InvalidPayload:
        refuse_pickle(False, f"a value of type {type(value).__name__}")
    return bytes([PLAIN]) + dumps(frozen)


def loads_plain(blob: Any) -> Any:
    """The value that `dumps_plain` wrote. Raises InvalidPayload."""
    return thaw(loads(blob[1:]), allow_pickle=False)


def _token(value: Any) -> Any:
    if isinstance(value, _Identity):
        raise InvalidPayload(
            f"an argument of type {type(value.value).__name__} cannot be pickled, "
            "so it cannot leave this process"
        )
    return value.token


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        raise ValueError("an object in a key")
    return value


def _float(value: float) -> tuple[str, str]:
    return "float", value.hex()


def _error(value: RunnerError) -> tuple[str, ...]:
    return type(value).__name__, str(value.args[0]), value.type_name, value.message, value.traceback


def _frozen_items(items: Any) -> tuple[Any, ...]:
    return tuple(freeze(item) for item in items)


_FREEZE: dict[type, Callable[[Any], Hashable]] = {
    type(None): lambda value: ("none",),
    bool: lambda value: ("bool", int(value)),
    int: lambda value: ("int", hex(value)),
    float: _float,
    complex: lambda value: ("complex", value.real.hex(), value.imag.hex()),
    str: lambda value: ("str", value),
    bytes: lambda value: ("bytes", base64.b64encode(value).decode("ascii")),
    tuple: lambda value: ("tuple", *_frozen_items(value)),
    list: lambda value: ("list", *_frozen_items(value)),
    # In the order of their frozen forms: the order of a set is an accident of hashing.
    set: lambda value: ("set", *sorted(_frozen_items(value), key=repr)),
    frozenset: lambda value: ("frozenset", *sorted(_frozen_items(value), key=repr)),
    # Ours: the error in a row of a list must reach its caller without pickle too.
    RunnerError: _error,
    InvalidResult: _error,
    # In the order of the caller: the model can see it.
    dict: lambda value: ("dict", *((freeze(k), freeze(v)) for k, v in value.items())),
}


def _thaw_numpy(content: Any, allow_pickle: bool) -> Any:
    dtype = np.dtype(content[0])
    if dtype.hasobject:
        raise InvalidPayload(f"not a frozen value: dtype {dtype}")
    return np.frombuffer(bytes.fromhex(content[1]), dtype=dtype)[0]


def _thaw_pickle(content: Any, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise InvalidPayload("pickle is not allowed on this connection, and an argument needs it")
    return pickling.loads(base64.b64decode(content[0]))


_THAW: dict[str, Callable[[Any, bool], Any]] = {
    "none": lambda content, allow: None,
    "bool": lambda content, allow: bool(content[0]),
    "int": lambda content, allow: int(content[0], 16),
    "float": lambda content, allow: float.fromhex(content[0]),
    "complex": lambda content, allow: complex(float.fromhex(content[0]), float.fromhex(content[1])),
    "str": lambda content, allow: str(content[0]),
    "bytes": lambda content, allow: base64.b64decode(content[0]),
    "tuple": lambda content, allow: tuple(thaw(item, allow_pickle=allow) for item in content),
    "list": lambda content, allow: [thaw(item, allow_pickle=allow) for item in content],
    "set": lambda content, allow: {thaw(item, allow_pickle=allow) for item in content},
    "frozenset": lambda content, allow: frozenset(thaw(item, allow_pickle=allow) for item in content),
    "dict": lambda content, allow: {
        thaw(k, allow_pickle=allow): thaw(v, allow_pickle=allow) for k, v in content
    },
    "RunnerError": lambda content, allow: RunnerError(*map(str, content)),
    "InvalidResult": lambda content, allow: InvalidResult(*map(str, content)),
    "numpy": _thaw_numpy,
    "pickle": _thaw_pickle,
}
