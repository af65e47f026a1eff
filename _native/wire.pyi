from collections.abc import Sequence
from typing import Any

__all__ = ["VERDICTS", "pack", "parse"]

VERDICTS: tuple[str, ...]

def parse(
    frames: Sequence[bytes],
) -> tuple[list[tuple[int, int, tuple[Any, ...] | None]], str | None, list[int]]: ...
def pack(records: Sequence[tuple[int, int, tuple[Any, ...] | None]]) -> list[bytes]: ...
