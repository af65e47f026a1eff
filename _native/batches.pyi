from collections.abc import Sequence
from typing import Any

from .rows import BufferPool

__all__ = ["new_result", "read_batches"]

def read_batches(address: int, fixed: type, var: type, pool: BufferPool | None) -> list[tuple[Any, ...]]: ...
def new_result(
    id_: int, rows: int, key: bytes, buffers: Sequence[Any], var: type, pool: BufferPool, owned: bool
) -> int: ...
