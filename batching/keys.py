"""Keys as bytes and back, each worked out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from batching.errors import InvalidPayload
from batching.payloads.canonical import dumps, loads

__all__ = ["Keys"]

_MAX_KEY_BYTES = 1 << 20
# Of the keys that are kept: peers choose them, and one may have a mebibyte.
_CACHE_BYTES = 1 << 24
_CACHE_ENTRIES = 1024


class Keys:
    """What is known of the keys of one signature."""

    def __init__(self) -> None:
        self._written = _Cache()
        self._read = _Cache()

    def dumps(self, key: Hashable) -> bytes:
        """A key as canonical bytes. Raises InvalidPayload if it cannot travel, or is too long to."""
        data: bytes | None = self._written.get(key)
        if data is None:
            data = dumps(key)
            if len(data) > _MAX_KEY_BYTES:
                raise InvalidPayload(
                    f"columns, categories and static arguments take {len(data)} bytes, "
                    f"at most {_MAX_KEY_BYTES} can travel"
                )
            self._written.put(key, data, len(data))
        return data

    def read(self, data: bytes, allow_pickle: bool, read: Callable[[Any, bool], Any]) -> Any:
        """What `read` makes of a key. Raises InvalidPayload."""
        # With the reader: a peer may send the key of a result as that of a call.
        known = (bytes(data), allow_pickle, read)
        parsed = self._read.get(known)
        if parsed is None:
            try:
                parsed = read(loads(data), allow_pickle)
            except InvalidPayload:
                raise
            except Exception as error:
                raise InvalidPayload(f"not a key: {bytes(data[:80])!r}") from error
            self._read.put(known, parsed, len(data))
        return parsed


class _Cache:
    """A dictionary that starts anew when it has grown too large."""

    __slots__ = ("_bytes", "_known", "get")

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._bytes = 0
        self.get = self._known.get

    def put(self, key: Any, value: Any, size: int) -> None:
        self._bytes += size
        if self._bytes > _CACHE_BYTES or len(self._known) >= _CACHE_ENTRIES:
            self._known.clear()
            self._bytes = size
        self._known[key] = value
