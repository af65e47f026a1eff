"""A runner as something to ship: pickled for its workers, described for its callers."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from .._native.calls import Handle
from ..errors import InvalidPayload, ServiceUnreachable
from ..options import BatchOptions
from ..signature import Described, Signature
from .wire import MAX_MESSAGE_BYTES

__all__ = [
    "CallSignature",
    "ItemSignature",
    "Plan",
    "described",
    "model_of",
    "pickled",
    "same_arguments",
    "signature_of",
]

_CALL = "call"
_FORMAT = 2


class ItemSignature:
    """The signature of a SimpleRunner's `_run`: a call is one list element, arguments and all.

    It has the methods of `Signature` that a service needs, so that nothing between caller
    and worker knows the difference.
    """

    def __init__(self) -> None:
        self._inner = Signature(_one_element)
        self.grouped = False
        self.regroup = self._inner.regroup
        self.encode = self._inner.encode
        self.decode = self._inner.decode
        self.encode_result = self._inner.encode_result
        self.decode_result = self._inner.decode_result
        self.finish = self._inner.finish

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any], batched: bool) -> Described:
        return self._inner.describe(((args, kwargs),), {}, False)


CallSignature = Signature | ItemSignature


def _one_element(calls: list[Any]) -> list[Any]:
    return calls


def signature_of(runner: Any) -> CallSignature:
    signature: Signature | None = runner._signature()
    return ItemSignature() if signature is None else signature


def model_of(runner: Any) -> Callable[..., Any]:
    """What runs a batch; a coroutine function if the runner's hook is one."""
    hook: Callable[..., Any] = runner._hook()
    if isinstance(runner, Handle):
        return hook

    def run_each(calls: list[Any]) -> list[Any]:
        return [hook(*args, **kwargs) for args, kwargs in calls]

    async def await_each(calls: list[Any]) -> list[Any]:
        return [await hook(*args, **kwargs) for args, kwargs in calls]

    return await_each if inspect.iscoroutinefunction(hook) else run_each


# ---- for workers ------------------------------------------------------------------


def pickled(runner: Any) -> bytes:
    """The runner, by value where no other process could import it.

    Raises:
        TypeError: naming the attribute that cannot be pickled.
    """
    with _by_value(_unimportable(type(runner))):
        try:
            blob: bytes = cloudpickle.dumps(runner)
        except Exception as error:
            raise TypeError(_culprit(runner, error)) from error
    return blob


def _culprit(runner: Any, error: Exception) -> str:
    kind = type(runner).__name__
    for name, value in vars(runner).items():
        try:
            cloudpickle.dumps(value)
        except Exception as own:
            return (
                f"{kind}.{name} ({type(value).__name__}) cannot be pickled, so it cannot be shipped to the "
                f"workers: {own}. Make it in _setup, which runs in each worker"
            )
    return f"{kind} cannot be pickled, so it cannot be shipped to the workers: {error}"


def _unimportable(cls: type) -> list[ModuleType]:
    """Modules of the class and its bases that a fresh process with this `sys.path` has not got."""
    modules = {base.__module__: sys.modules.get(base.__module__) for base in cls.__mro__}
    return [
        module
        for name, module in modules.items()
        if module is not None and name != "__main__" and not _findable(name)
    ]


def _findable(name: str) -> bool:
    top = name.partition(".")[0]
    # Not importlib.util.find_spec: that answers from sys.modules.
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        with contextlib.suppress(Exception):
            if find is not None and find(top, None) is not None:
                return True
    return False


@contextlib.contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    known = cloudpickle.list_registry_pickle_by_value()
    own = [module for module in modules if module.__name__ not in known]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


# ---- for callers ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a caller in another process needs to know of a runner."""

    signature: CallSignature
    options: BatchOptions
    batches: bool  # False: a SimpleRunner, which takes single calls only

    @classmethod
    def read(cls, description: bytes, *, allow_pickle: bool) -> Plan:
        """Raises ServiceUnreachable for what `described` never wrote."""
        try:
            tree = json.loads(description)
            if tree["format"] != _FORMAT:
                raise ValueError(f"format {tree['format']}")
            options = BatchOptions(**tree["options"])
            if not tree["batches"]:
                return cls(ItemSignature(), options, False)
            signature = Signature.from_bytes(tree["signature"].encode(), allow_pickle=allow_pickle)
            return cls(signature, options, True)
        except (ValueError, KeyError, TypeError, RecursionError, InvalidPayload) as error:
            raise ServiceUnreachable(
                f"the service describes itself in a way unknown here: {error}"
            ) from error


def described(runner: Any, options: BatchOptions) -> bytes:
    """The runner as JSON, with the options that its service has. A default that cannot leave
    this process makes its argument required."""
    signature = runner._signature()
    tree = {
        "format": _FORMAT,
        "batches": signature is not None,
        "options": dataclasses.asdict(options),
        "signature": None if signature is None else signature.to_bytes().decode("ascii"),
    }
    return json.dumps(tree).encode()


def message_limit(description: bytes) -> int:
    """How many bytes a message to the service may have, if it says so and has it less than the protocol."""
    try:
        limit = json.loads(description).get("max_message_bytes")
    except (ValueError, AttributeError, RecursionError):
        return MAX_MESSAGE_BYTES
    return limit if type(limit) is int and 0 < limit < MAX_MESSAGE_BYTES else MAX_MESSAGE_BYTES


def same_arguments(one: bytes, other: bytes) -> bool:
    """Whether two descriptions are of the same calls: options may change while a service runs."""
    try:
        return _without_options(one) == _without_options(other)
    except (ValueError, TypeError, RecursionError):
        return one == other


def _without_options(description: bytes) -> dict[str, Any]:
    return {**json.loads(description), "options": None, "max_message_bytes": None}
