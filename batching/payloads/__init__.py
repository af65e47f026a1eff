"""Payload kinds: what can be batched, found by type.

numpy arrays, pandas frames and series, and lists are the entries that every runner has;
``kinds`` on the runner's class adds to them (`docs/payloads.md`). pandas is imported only
when a pandas object arrives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batching.errors import InvalidPayload

from .kinds import MISSING, Encoded, Fixed, InvalidResult, Kind, Piece, Var, make_var, take_fixed, take_var
from .list_kind import ListKind
from .numpy_kind import NumpyKind
from .padding import Pad

__all__ = [
    "MISSING",
    "Encoded",
    "Fixed",
    "InvalidResult",
    "Kind",
    "Pad",
    "Piece",
    "Registry",
    "Var",
    "make_var",
    "take_fixed",
    "take_var",
]

_CACHE_ENTRIES = 1024
_LIST = ListKind()
_pandas: dict[str, Kind] = {}


class Registry:
    """The kinds of one runner, by type and by name. Finding one costs a dictionary access."""

    def __init__(self, kinds: Sequence[Kind] = ()) -> None:
        # Its own: it keeps buffers, which end with the runner.
        self._numpy = NumpyKind()
        self._named: dict[str, Kind] = {_LIST.name: _LIST, self._numpy.name: self._numpy}
        self._own: dict[type, Kind] = {}
        for kind in kinds:
            self._add(kind)
        self._found: dict[type, Kind | None] = {}

    def _add(self, kind: Kind) -> None:
        if not isinstance(kind, Kind):
            raise TypeError(f"kinds must hold instances of Kind, got {kind!r}")
        if not isinstance(getattr(kind, "name", None), str) or kind.name in (*self._named, "frame", "series"):
            raise ValueError(f"the kind {type(kind).__name__} needs a name of its own")
        self._named[kind.name] = kind
        for cls in kind.types:
            if cls in self._own:
                raise ValueError(f"two kinds claim the type {cls.__name__}")
            self._own[cls] = kind

    def find(self, cls: type) -> Kind | None:
        """The kind of values of the type, or None where no kind claims it."""
        try:
            return self._found[cls]
        except KeyError:
            # Bounded: a program may make classes without end.
            if len(self._found) >= _CACHE_ENTRIES:
                self._found.clear()
            kind = self._found[cls] = self._look_up(cls)
            return kind

    def of_item(self, cls: type) -> Kind:
        """The kind that takes what `run` was given: lists, if no other."""
        return self.find(cls) or _LIST

    def of_name(self, name: object) -> Kind:
        """The kind of that name. Raises InvalidPayload."""
        if name in ("frame", "series"):
            _load_pandas()
            return _pandas[str(name)]
        kind = self._named.get(name) if isinstance(name, str) else None
        if kind is None:
            raise InvalidPayload(f"unknown payload kind {name!r}: the other side knows {sorted(self._named)}")
        return kind

    def _look_up(self, cls: type) -> Kind | None:
        if cls in self._own:
            return self._own[cls]
        if cls is np.ndarray or cls is np.memmap:
            return self._numpy
        if issubclass(cls, list):
            return _LIST
        for base in cls.__mro__:
            if base.__module__.partition(".")[0] == "pandas" and base.__name__ in ("DataFrame", "Series"):
                if base is not cls:
                    raise InvalidPayload(
                        f"a subclass of {base.__name__} would be lost in a batch: "
                        f"pass pd.{base.__name__}(x) instead of {cls.__name__}"
                    )
                _load_pandas()
                return _pandas["frame" if base.__name__ == "DataFrame" else "series"]
        return None


def _load_pandas() -> None:
    if not _pandas:
        from .pandas_kind import FrameKind, SeriesKind

        _pandas.update(frame=FrameKind(), series=SeriesKind())
