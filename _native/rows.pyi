from typing import Any

import numpy as np
from typing_extensions import disjoint_base

__all__ = [
    "VIEW_ROW_BYTES",
    "BufferPool",
    "is_sole_reference",
    "join_arrays",
    "join_blocks",
    "split_blocks",
    "split_rows",
]

VIEW_ROW_BYTES: int

def join_arrays(
    arrays: list[np.ndarray[Any, Any]], out: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]: ...
def join_blocks(
    blocks: list[tuple[np.ndarray[Any, Any], int, int]], out: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]: ...
def split_rows(batch: np.ndarray[Any, Any], owned: bool = False) -> list[Any]: ...
def split_blocks(
    batch: np.ndarray[Any, Any], counts: list[int], owned: bool = False
) -> list[np.ndarray[Any, Any]]: ...
def is_sole_reference(box: list[Any], at: int = 0) -> bool: ...

@disjoint_base
class BufferPool:
    def __new__(cls, keep: int = 2) -> BufferPool: ...
    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]: ...
    def is_alone(self, array: Any) -> bool: ...
