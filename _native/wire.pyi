from collections.abc import Sequence
from typing import Any

__all__ = ["VERDICTS", "blob_rules", "pack", "parse"]

VERDICTS: tuple[str, ...]

def parse(
    frames: Sequence[bytes],
) -> tuple[list[tuple[int, int, tuple[Any, ...] | None]], str | None, list[int]]: ...
def blob_rules(key: bytes, row_bytes: Sequence[int]) -> list[int] | None: ...
def pack(records: Sequence[tuple[int, int, tuple[Any, ...] | None]]) -> list[bytes]: ...
