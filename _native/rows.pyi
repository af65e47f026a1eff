from typing import Any

import numpy as np

__all__ = ["VIEW_ROW_BYTES", "BufferPool", "join_arrays", "join_blocks", "split_blocks", "split_rows"]

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

class BufferPool:
    def __init__(self, keep: int = 2) -> None: ...
    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]: ...
