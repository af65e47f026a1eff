from collections.abc import Callable
from typing import Any

__all__ = ["cut_blobs", "holds_instance", "lengths_of", "pickle_each", "unpickle_each"]

def lengths_of(blobs: list[Any]) -> bytes: ...
def cut_blobs(data: Any, lengths: Any, rows: int) -> list[bytes | memoryview | None]: ...
def pickle_each(
    values: list[Any],
    dumps: Callable[..., bytes],
    keep: Callable[[Any], bool],
    large: list[Any],
    unusual: Callable[[Any, bytes | None], bytes],
) -> list[bytes]: ...
def unpickle_each(
    blobs: list[Any], loads: Callable[[bytes], Any], unusual: Callable[[Any], Any]
) -> list[Any]: ...
def holds_instance(values: list[Any], cls: type) -> bool: ...
